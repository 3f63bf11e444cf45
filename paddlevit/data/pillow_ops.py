"""What augmentations are made of, on Pillow images (mode RGB or L). opencv_ops.py has the same on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Fill = Union[int, tuple[int, ...]]


def lookup(image: Image.Image, table: np.ndarray) -> Image.Image:
    """Every value v becomes table[v]; uint8 [256]."""
    return image.point(table.tolist() * len(image.getbands()))


def autocontrast(image: Image.Image) -> Image.Image:
    """Every channel stretched to 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image) -> Image.Image:
    """Every channel's histogram made flat."""
    return ImageOps.equalize(image)


def colour(image: Image.Image, factor: float) -> Image.Image:
    """Blended with its grey version: 0 is grey, 1 the image."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blended with its mean grey."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blended with black."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Blended with its smoothed version."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def rotate(image: Image.Image, degrees: float, resample: Image.Resampling, fill: Fill) -> Image.Image:
    """Turned about the centre, counter-clockwise."""
    return image.rotate(degrees, resample=resample, fillcolor=fill)


def affine(image: Image.Image, matrix: Sequence[float], resample: Image.Resampling, fill: Fill) -> Image.Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), for matrix = (a, b, c, d, e, f)."""
    return image.transform(image.size, Image.Transform.AFFINE, tuple(matrix), resample=resample, fillcolor=fill)


def grey(image: Image.Image) -> Image.Image:
    """Without colours; the mode stays."""
    return image.convert("L").convert(image.mode)


def blur(image: Image.Image, radius: float) -> Image.Image:
    """Blurred by a Gaussian with that deviation, in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def mirror(image: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def size(image: Image.Image) -> tuple[int, int]:
    """Width and height."""
    return image.size
