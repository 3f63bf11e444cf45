"""A part of an image as an array, decoded no further than it is needed; for training with OpenCV."""

from __future__ import annotations

from typing import Callable

import numpy as np

from paddlevit.data.decode import decode, most_pixels
from paddlevit.data.jpeg import decode_part, read_frame, reduction
from paddlevit.data.sources import Source

Box = tuple[int, int, int, int]  # left, top, right, bottom
ChooseBox = Callable[[int, int], Box]


def read_part(source: Source, i: int, choose: ChooseBox, *, side: int, fast: bool = False) -> np.ndarray:
    """Pixels uint8 [h, w, 3] of a box of the i-th image; choose(width, height) says which. `fast`: see decode_part.

    A JPEG file of which both sides of the box are at least 2, 4 or 8 times `side` is decoded at 1/2, 1/4 or 1/8 of its
    size, and the box's corners are rounded to pixels of that. Raises UserError, naming the image, where it cannot be
    read.
    """
    if not source.encoded:
        pixels = np.asarray(source.image(i))
        return _cut(pixels, choose(pixels.shape[1], pixels.shape[0]))
    data = source.read(i)
    frame = read_frame(data)
    if frame is not None and frame.components in (1, 3) and frame.width * frame.height <= most_pixels():
        left, top, right, bottom = box = choose(frame.width, frame.height)
        reduced = reduction(right - left, bottom - top, side=side)
        part = decode_part(data, frame, box, reduced=reduced, fast=fast)
        if part is not None:
            return part
    pixels = np.asarray(decode(data, source.name(i)))
    return _cut(pixels, choose(pixels.shape[1], pixels.shape[0]))


def _cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]
