"""Training images by OpenCV: what transforms.py and augment.py do to Pillow's images, several times as fast.

Images are arrays uint8 [H, W, 3] or [H, W]. The same is drawn and done, but values differ a little: evaluation never
comes here.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Callable

import cv2
import numpy as np
from PIL import Image

from paddlevit.data.augment import Fill
from paddlevit.data.dataset import ImageDataset
from paddlevit.data.decode import decode, is_turned
from paddlevit.data.sources import Source
from paddlevit.data.transforms import Box, PaddedCrop, TrainTransform

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_FILTERS = {Image.Resampling.BICUBIC: cv2.INTER_CUBIC, Image.Resampling.BILINEAR: cv2.INTER_LINEAR}
_VALUES = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_MOST_FILTERED = 2.5
_MARGIN = 4  # rows that one row of the coarsest colors of a JPEG file can stand for


class OpenCVDataset(ImageDataset):
    """Training images of a source, of which no more is decoded than the part that is drawn."""

    transform: TrainTransform

    def __init__(self, source: Source, transform: TrainTransform, *, channels: int = 3, fast: bool = True) -> None:
        super().__init__(source, transform, channels=channels)
        self._fast = fast

    def pixels(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        assert rng is not None
        crop = self.transform.crop
        box = functools.partial(crop.box, rng=rng)
        part = read_part(self.source, i, box, side=crop.size, fast=self._fast)
        pixels = resize(part, crop.size, crop.resample)
        if isinstance(crop, PaddedCrop):
            pixels = moved(pixels, *crop.offset(rng), fill=(0, 0, 0))
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if self.mode == "L" else pixels
        return self.transform.augmented(pixels, rng)

    def write(self, out: np.ndarray, i: int, rng: np.random.Generator | None = None) -> None:
        pixels = self.pixels(i, rng)
        assert (pixels.shape, pixels.dtype) == (out.shape, out.dtype), "split would write to arrays of its own"
        cv2.split(pixels, list(out.transpose(2, 0, 1)))  # NumPy takes five times as long


def read_part(source: Source, i: int, choose: Callable[[int, int], Box], *, side: int, fast: bool = True) -> np.ndarray:
    """Pixels uint8 [h, w, 3] of a box of the i-th image; choose(width, height) says which.

    JPEG files are decoded by simplejpeg, where it is installed, no further than the last row of the box, and where both
    of its sides are at least 2, 4 or 8 times `side`, at 1/2, 1/4 or 1/8 of their size. `fast`: more coarsely, which
    changes values by 1.4 levels on average.
    """
    if source.encoded:
        data, decoding = source.read(i), source.decoding
        if simplejpeg and not (decoding.upright and is_turned(data)):
            part = _jpeg_part(data, choose, side=side, fast=fast, max_pixels=decoding.max_pixels)
            if part is not None:
                return part
        image = decode(data, source.name(i), decoding)
    else:
        image = source.image(i)
    left, top, right, bottom = choose(image.width, image.height)
    return np.asarray(image)[top:bottom, left:right]


def _jpeg_part(
    data: bytes, choose: Callable[[int, int], Box], *, side: int, fast: bool, max_pixels: int
) -> np.ndarray | None:
    """None for what is not a JPEG file, or an unusual or incomplete one."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    at = data.find(struct.pack(">BHH", 8, height, width)) + 1  # bits a value and the size, as the header has them
    if colors not in ("Gray", "YCbCr") or height * width > max_pixels or not at or not data.endswith(b"\xff\xd9"):
        return None
    box = choose(width, height)
    shortest = min(box[2] - box[0], box[3] - box[1])
    reduced = next((factor for factor in (8, 4, 2) if shortest >= factor * side), 1)
    left, top, right, bottom = (round(edge / reduced) for edge in box)
    # With a header that says so, the image ends at the box. Its last rows would not be smoothed as those of the whole.
    rows = min(height, (bottom + _MARGIN) * reduced)
    shorter = bytearray(data)
    shorter[at : at + 2] = rows.to_bytes(2, "big")
    sides = {"min_height": -(-rows // reduced), "min_width": -(-width // reduced)}
    try:
        pixels = simplejpeg.decode_jpeg(shorter, "RGB", fastdct=fast, fastupsample=fast, strict=False, **sides)
    except ValueError:
        return None
    return pixels[top:bottom, left:right]


def resize(pixels: np.ndarray, side: int, resample: Image.Resampling) -> np.ndarray:
    """Pixels [side, side, ...].

    OpenCV's filters look at 2 or 4 pixels however much an image shrinks, so that fine patterns turn into coarse ones. A
    Gaussian blur first, as wide as the difference to a filter that grows with the reduction, removes them, at twice the
    speed of averages over areas.
    """
    height, width = pixels.shape[:2]
    if height == width == side:
        return pixels
    if max(height, width) > _MOST_FILTERED * side:
        return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    sigma_x, sigma_y = (0.45 * max((old / side) ** 2 - 1.0, 0.0) ** 0.5 for old in (width, height))
    if sigma_x or sigma_y:
        pixels = cv2.GaussianBlur(pixels, (3 if sigma_x else 1, 3 if sigma_y else 1), sigma_x or 1, sigmaY=sigma_y or 1)
    return cv2.resize(pixels, (side, side), interpolation=_FILTERS[resample])


def moved(pixels: np.ndarray, left: int, top: int, *, fill: Fill) -> np.ndarray:
    """The pixels from (left, top) on; `fill` comes in from outside."""
    x, y = abs(left), abs(top)
    height, width = pixels.shape[:2]
    padded = cv2.copyMakeBorder(pixels, y, y, x, x, cv2.BORDER_CONSTANT, value=fill)
    return padded[y + top : y + top + height, x + left : x + left + width]


def _by_plane(change: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    return cv2.merge([change(plane) for plane in cv2.split(pixels)])


def _stretched(plane: np.ndarray) -> np.ndarray:
    low, high, *_ = cv2.minMaxLoc(plane)
    return cv2.LUT(plane, _to_levels((_VALUES - low) * (255 / (high - low)))) if low < high else plane


def _to_levels(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    mean = cv2.mean(pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0]
    return cv2.LUT(pixels, _to_levels(mean + factor * (_VALUES - mean)))


def _sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    kernel = (1.0 - factor) * _SMOOTH
    kernel[1, 1] += factor
    return cv2.filter2D(pixels, -1, kernel)


def _rotate(pixels: np.ndarray, degrees: float, resample: Image.Resampling, fill: Fill) -> np.ndarray:
    height, width = pixels.shape[:2]
    inverse = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    return _warped(pixels, inverse, resample, fill)


def _warped(pixels: np.ndarray, inverse: np.ndarray, resample: Image.Resampling, fill: Fill) -> np.ndarray:
    """The pixel at (x, y) comes from inverse @ (x, y, 1). Filters of 16 values are faster on float32 than on uint8."""
    flags = _FILTERS[resample] | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(pixels.astype(np.float32), inverse, pixels.shape[1::-1], flags=flags, borderValue=fill)
    return cv2.addWeighted(warped, 1.0, warped, 0.0, 0.0, dtype=cv2.CV_8U)


def _grey(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


# What augment.PILLOW has, under the same names.
OPS: dict[str, Callable[..., Any]] = {
    "lookup": cv2.LUT,
    "autocontrast": lambda pixels: _by_plane(_stretched, pixels),
    "equalize": lambda pixels: _by_plane(cv2.equalizeHist, pixels),
    "color": lambda pixels, factor: cv2.addWeighted(pixels, factor, _grey(pixels), 1.0 - factor, 0.0),
    "contrast": _contrast,
    "brightness": lambda pixels, factor: cv2.LUT(pixels, _to_levels(factor * _VALUES)),
    "sharpness": _sharpness,
    "rotate": _rotate,
    # OpenCV counts from the centre of the first pixel, Pillow from its corner.
    "shear": lambda pixels, x, y, *how: _warped(pixels, np.array([[1.0, x, x / 2], [y, 1.0, y / 2]]), *how),
    "translate": lambda p, x, y, _, fill: moved(p, round(x * p.shape[1]), round(y * p.shape[0]), fill=fill),
    "grey": _grey,
    "blur": lambda pixels, radius: cv2.GaussianBlur(pixels, (0, 0), radius, borderType=cv2.BORDER_REPLICATE),
    "mirror": lambda pixels: cv2.flip(pixels, 1),
}
