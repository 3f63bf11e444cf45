"""Training transforms on arrays, by OpenCV; transforms.py has the same on Pillow's images.

transform(source, i, rng) reads the i-th image itself, because what it decodes depends on the part that it draws.
"""

from __future__ import annotations

from typing import Callable

import cv2
import numpy as np

from paddlevit.data import opencv_ops as ops
from paddlevit.data.augment import Augmentation
from paddlevit.data.parts import Box, read_part
from paddlevit.data.sources import Source
from paddlevit.data.transforms import PaddedCrop, RandomResizedCrop

Crop = Callable[[Source, int, np.random.Generator], np.ndarray]


class OpenCVTrainTransform:
    """Crop, mirror with probability `hflip`, then augment; `channels` 1: grey; `fast`: see jpeg.decode_part."""

    def __init__(
        self,
        crop: RandomResizedCrop | PaddedCrop,
        *,
        hflip: float,
        augmentation: Augmentation | None,
        channels: int = 3,
        fast: bool = False,
    ) -> None:
        self.crop = crop
        self.hflip = hflip
        self.augmentation = augmentation
        self.grey = channels == 1
        self.fast = fast

    def __call__(self, source: Source, i: int, rng: np.random.Generator) -> np.ndarray:
        """Pixels uint8 [size, size, C]. Raises UserError, naming the image, where it cannot be read."""
        pixels = self._cropped(source, i, rng)
        if self.grey:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        if rng.random() < self.hflip:
            pixels = ops.mirror(pixels)
        if self.augmentation is not None:
            pixels = self.augmentation(pixels, rng)
        return pixels[:, :, None] if self.grey else pixels

    def _cropped(self, source: Source, i: int, rng: np.random.Generator) -> np.ndarray:
        crop, size = self.crop, (self.crop.size, self.crop.size)
        if isinstance(crop, PaddedCrop):
            pixels = ops.resize(read_part(source, i, _whole, side=crop.size, fast=self.fast), size, crop.resample)
            return _moved(pixels, *crop.offset(rng))

        def choose(width: int, height: int) -> Box:
            return crop.box(width, height, rng)

        part = read_part(source, i, choose, side=crop.size, fast=self.fast)
        return ops.resize(part, size, crop.resample)


def _whole(width: int, height: int) -> Box:
    return 0, 0, width, height


def _moved(pixels: np.ndarray, left: int, top: int) -> np.ndarray:
    """The pixels from (left, top) on; zeros come in from outside."""
    x, y = abs(left), abs(top)
    height, width = pixels.shape[:2]
    padded = cv2.copyMakeBorder(pixels, y, y, x, x, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    return padded[y + top : y + top + height, x + left : x + left + width]
