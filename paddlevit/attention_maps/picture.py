"""Heat over an image, and sheets of pictures with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from paddlevit.attention_maps.heat import stretched

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image
Captioned = tuple[str, Optional[Image.Image]]

# From cold to hot: the brightness rises evenly, so that the order is seen without colors too.
_PALETTE = ((10, 8, 50), (70, 15, 110), (140, 30, 115), (205, 60, 80), (243, 115, 40), (252, 185, 50), (250, 250, 180))
_GAMMA = 0.7  # below 1: what is lukewarm shows too
_STRENGTH = 0.75  # of the hottest color over the image
_UNSEEN = 0.4  # brightness of what the model has not seen
_MARGIN, _LINE, _GROUND, _INK = 8, 20, (255, 255, 255), (30, 30, 30)


def colored(heat: np.ndarray) -> np.ndarray:
    """0 to 1, any shape -> RGB uint8 with one axis more."""
    steps = np.linspace(0, 1, len(_PALETTE))
    channels = [np.interp(heat, steps, channel) for channel in zip(*_PALETTE)]
    return np.stack(channels, axis=-1).round().astype("uint8")


def overlay(image: Image.Image, heat: np.ndarray, box: Box | None = None) -> Image.Image:
    """`image` with `heat` [h, w], 0 to 1, over it; RGB, the image's own size.

    `box` is the part of the image that the model has seen, by default all of it; the rest becomes dark.
    """
    image = image.convert("RGB")
    left, top, right, bottom = (round(edge) for edge in box or (0, 0, *image.size))
    size = max(right - left, 1), max(bottom - top, 1)
    small = Image.fromarray(np.asarray(heat, dtype="float32"))
    grown = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    strength = _STRENGTH * grown[:, :, None] ** _GAMMA
    seen = np.asarray(image.crop((left, top, right, bottom)), dtype="float32")
    mixed = seen * (1 - strength) + colored(grown) * strength
    picture = image.point(lambda value: int(value * _UNSEEN))
    picture.paste(Image.fromarray(mixed.round().astype("uint8")), (left, top))
    return picture


def tiles(feature_map: np.ndarray, count: int, side: int) -> list[Image.Image]:
    """The `count` channels of a map [C, h, w] that vary most over it, each from its own smallest to largest value.

    The longer side has `side` pixels; places stay squares, so that the resolution shows.
    """
    channels = feature_map[np.argsort(-feature_map.std(axis=(1, 2)), kind="stable")[:count]]
    pictures = map(Image.fromarray, colored(stretched(channels)))
    return [ImageOps.contain(picture, (side, side), Image.Resampling.NEAREST) for picture in pictures]


def fitted(image: Image.Image, box: Box, side: int) -> tuple[Image.Image, Box]:
    """`image` with its longer side at `side`, and `box` as it lies there."""
    factor = side / max(image.size)
    left, top, right, bottom = (edge * factor for edge in box)
    size = [max(1, round(edge * factor)) for edge in image.size]  # contain() refuses to make 0 pixels of a thin image
    return image.resize(size, Image.Resampling.BICUBIC), (left, top, right, bottom)


def sheet(rows: Sequence[Sequence[Captioned]]) -> Image.Image:
    """Rows of pictures below each other, each picture below its caption; RGB, as large as that needs.

    A caption without a picture is a line of text.
    """
    font = _font()
    width, top, placed = 0, _MARGIN, []
    for row in rows:
        left = _MARGIN
        for caption, picture in row:
            placed.append((left, top, caption, picture))
            width = max(width, left + math.ceil(font.getlength(caption)), left + (picture.width if picture else 0))
            left += picture.width + _MARGIN if picture else 0
        top += _LINE + max(picture.height + _MARGIN if picture else 0 for _, picture in row)
    page = Image.new("RGB", (width + _MARGIN, top + _MARGIN), _GROUND)
    draw = ImageDraw.Draw(page)
    for left, top, caption, picture in placed:
        draw.text((left, top), caption, fill=_INK, font=font)
        if picture:
            page.paste(picture, (left, top + _LINE))
    return page


def _font() -> Any:
    try:
        return ImageFont.load_default(size=13)
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType: a smaller one of fixed size
        return ImageFont.load_default()
