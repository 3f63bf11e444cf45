"""Parts of JPEG files by OpenCV, where that gives Pillow's own pixels or is asked to give fewer of them.

Both decode with libjpeg-turbo, so that a whole image is the same, value by value; OpenCV takes a little less time and
gives an array. Only files whose header says that nothing is unusual about them go this way.
"""

from typing import NamedTuple, Optional

import cv2
import numpy as np

_SEQUENTIAL_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}

# What libjpeg can leave out while it decodes: it makes 4, 2 or 1 pixels of a block of 8.
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}


class Frame(NamedTuple):
    """What the header of a JPEG file says: sides in pixels, and how many colour components."""

    width: int
    height: int
    components: int


def read_frame(data: bytes) -> Optional[Frame]:
    """The header of a complete JPEG file with 8 bits a value; None for everything else."""
    if not data.startswith(b"\xff\xd8") or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SEQUENTIAL_OR_PROGRESSIVE:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return Frame(width, height, data[at + 9]) if data[at + 4] == 8 and width and height else None
        if marker in _OTHER_FRAMES or marker in (0xD9, 0xDA):
            return None
        if marker == 0xFF:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def reduction(width: int, height: int, *, side: int) -> int:
    """The largest of 8, 4, 2 and 1 by which both sides can be divided and keep `side` pixels."""
    return next((factor for factor in _REDUCED if min(width, height) >= factor * side), 1)


def decode_frame(data: bytes, frame: Frame, *, reduced: int = 1) -> Optional[np.ndarray]:
    """Pixels uint8 [H, W, 3], blue first, with both sides divided by `reduced` and rounded up; None where OpenCV
    cannot read the file."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduced] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    expected = (-(-frame.height // reduced), -(-frame.width // reduced), 3)
    return pixels if pixels is not None and pixels.shape == expected else None
