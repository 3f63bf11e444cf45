"""Parts of JPEG files, for training: by simplejpeg where it is installed, otherwise by OpenCV.

Both decode with libjpeg-turbo, as Pillow does, so that pixels are the same, value by value, unless fewer or coarser
ones are asked for. Only files whose header says that nothing is unusual about them go this way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_SEQUENTIAL_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}

# By how much libjpeg can divide both sides while it decodes: it makes 4, 2 or 1 pixels of a block of 8.
_REDUCTIONS = (8, 4, 2, 1)


class Frame(NamedTuple):
    """What the header of a JPEG file says: sides in pixels, how many colour components, how many rows of pixels one
    row of the coarsest of them stands for, and where in the file the height is written."""

    width: int
    height: int
    components: int
    rows: int
    height_at: int


def read_frame(data: bytes) -> Frame | None:
    """The header of a complete JPEG file with 8 bits a value; None for everything else."""
    if not data.startswith(b"\xff\xd8") or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SEQUENTIAL_OR_PROGRESSIVE:
            return _frame(data, at + 4)
        if marker in _OTHER_FRAMES or marker in (0xD9, 0xDA):
            return None
        if marker == 0xFF:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _frame(data: bytes, at: int) -> Frame | None:
    height, width = int.from_bytes(data[at + 1 : at + 3], "big"), int.from_bytes(data[at + 3 : at + 5], "big")
    sampling = data[at + 7 : at + 6 + 3 * data[at + 5] : 3]
    if data[at] != 8 or not width or not height or not sampling:
        return None
    return Frame(width, height, data[at + 5], max(each & 15 for each in sampling), at + 1)


def reduction(width: int, height: int, *, side: int) -> int:
    """The largest of 8, 4, 2 and 1 by which both sides can be divided and keep `side` pixels."""
    return next((factor for factor in _REDUCTIONS if min(width, height) >= factor * side), 1)


def decode_part(
    data: bytes, frame: Frame, box: tuple[int, int, int, int], *, reduced: int = 1, fast: bool = False
) -> np.ndarray | None:
    """Pixels uint8 [h, w, 3] of the box (left, top, right, bottom) with all sides divided by `reduced`, the corners
    rounded; None where the file cannot be read.

    `fast`: simplejpeg, where it is installed, rounds more coarsely in its transform and does not smooth the colours
    between their samples, which changes values by 1.4 levels on average.
    """
    left, top, right, bottom = (round(edge / reduced) for edge in box)
    if simplejpeg:
        pixels = _rows_by_simplejpeg(data, frame, bottom, reduced, fast)
    else:
        pixels = _all_by_opencv(data, frame, reduced)
    if pixels is None or pixels.shape[0] < bottom or pixels.shape[1] != -(-frame.width // reduced):
        return None
    part = pixels[top:bottom, left:right]
    return part if simplejpeg else part[:, :, ::-1]


def _rows_by_simplejpeg(data: bytes, frame: Frame, bottom: int, reduced: int, fast: bool) -> np.ndarray | None:
    """Rows up to `bottom`, and a few more.

    The file is given a header with a smaller height: decoding ends there, and never looks at the rest of the file. The
    rows that are kept are those of the whole image, as smoothing colours looks one sample further down.
    """
    height = min(frame.height, (bottom + frame.rows) * reduced)
    shorter = bytearray(data)
    shorter[frame.height_at : frame.height_at + 2] = height.to_bytes(2, "big")
    sides = {"min_height": -(-height // reduced), "min_width": -(-frame.width // reduced)}
    try:
        return simplejpeg.decode_jpeg(shorter, "RGB", fastdct=fast, fastupsample=fast, strict=False, **sides)
    except ValueError:
        return None


def _all_by_opencv(data: bytes, frame: Frame, reduced: int) -> np.ndarray | None:
    """All pixels, blue first."""
    import cv2

    flag = cv2.IMREAD_COLOR if reduced == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduced}")
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
