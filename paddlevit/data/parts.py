"""A part of an image as an array, decoded no further than it is needed; for training with OpenCV."""

from typing import Callable, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image

from paddlevit.data.decode import decode
from paddlevit.data.jpeg import decode_frame, read_frame, reduction
from paddlevit.data.sources import Source

Box = Tuple[int, int, int, int]  # left, top, right, bottom
ChooseBox = Callable[[int, int], Box]


def read_part(source: Source, i: int, choose: ChooseBox, *, side: int) -> np.ndarray:
    """Pixels uint8 [h, w, 3] of a box of the i-th image; choose(width, height) says which.

    A JPEG file of which both sides of the box are at least 2, 4 or 8 times `side` is decoded at 1/2, 1/4 or 1/8 of its
    size, and the box's corners are rounded to pixels of that. Raises UserError, naming the image, where it cannot be
    read.
    """
    if not source.encoded:
        pixels = np.asarray(source.image(i))
        return _cut(pixels, choose(pixels.shape[1], pixels.shape[0]))
    data = source.read(i)
    frame = read_frame(data)
    if frame is not None and frame.components in (1, 3) and frame.width * frame.height <= _most_pixels():
        left, top, right, bottom = box = choose(frame.width, frame.height)
        reduced = reduction(right - left, bottom - top, side=side)
        decoded = decode_frame(data, frame, reduced=reduced)
        if decoded is not None:
            return cv2.cvtColor(_cut(decoded, tuple(round(edge / reduced) for edge in box)), cv2.COLOR_BGR2RGB)
    pixels = np.asarray(decode(data, source.name(i)))
    return _cut(pixels, choose(pixels.shape[1], pixels.shape[0]))


def _most_pixels() -> float:
    return Image.MAX_IMAGE_PIXELS or float("inf")


def _cut(pixels: np.ndarray, box: Sequence[int]) -> np.ndarray:
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]
