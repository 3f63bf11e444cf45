"""What augmentations are made of, on arrays uint8 [H, W, 3] or [H, W], by OpenCV: several times as fast as Pillow.

Operations that map values to values, or count them, give Pillow's own pixels. `colour`, `contrast` and `sharpness`
differ by at most 1 level from rounding. Geometric ones interpolate as Pillow does up to a few levels (OpenCV's cubic
is a little sharper, and places are rounded to 1/32 pixel), and meet `fill` otherwise within a pixel of the border.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Union

import cv2
import numpy as np
from PIL import Image

Fill = Union[int, tuple[int, ...]]

_FILTERS = {Image.Resampling.BICUBIC: cv2.INTER_CUBIC, Image.Resampling.BILINEAR: cv2.INTER_LINEAR}
_VALUES = np.arange(256)
_COLUMN = _VALUES[:, None]  # beside one table per channel
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_SHIFT = 6
_ONE = 1 << _SHIFT  # weights are whole multiples of 1/64, so that sums fit into int16
_STEPS = 256  # places between two pixels for which a shear has weights
_TRUNCATE = -0.499  # OpenCV rounds blends and filtered values, Pillow truncates them
_MOST_FILTERED = 2.5


def lookup(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Every value v becomes table[v], or table[v, c] in channel c; uint8 [256] or [256, channels]."""
    return cv2.LUT(pixels, table if table.ndim == 1 else table[None])


def autocontrast(pixels: np.ndarray) -> np.ndarray:
    """Every channel stretched to 0 to 255."""
    # Along one axis after the other: a tenth of the time of both at once.
    low = np.ravel(pixels.min(axis=0).min(axis=0)).astype(int)
    high = np.ravel(pixels.max(axis=0).max(axis=0)).astype(int)
    scale = 255.0 / np.maximum(high - low, 1)
    stretched = (_COLUMN * scale - low * scale).clip(0, 255)
    return lookup(pixels, np.where(high > low, stretched, _COLUMN).astype(np.uint8))


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Every channel's histogram made flat."""
    counts = _histograms(pixels)
    upto = np.cumsum(counts, axis=0)
    highest = counts[np.ravel(pixels.max(axis=0).max(axis=0)), range(counts.shape[1])]
    step = (upto[-1] - highest) // 255
    flat = np.minimum((step // 2 + upto - counts) // np.maximum(step, 1), 255)
    return lookup(pixels, np.where(step > 0, flat, _COLUMN).astype(np.uint8))


def _histograms(pixels: np.ndarray) -> np.ndarray:
    """How often each value stands in each channel: int64 [256, channels]."""
    channels = range(1 if pixels.ndim == 2 else pixels.shape[2])
    images: list[Any] = [pixels]
    counts = [cv2.calcHist(images, [c], None, [256], [0, 256]) for c in channels]
    return np.stack(counts, axis=1).reshape(256, -1).astype(np.int64)


def colour(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blended with its grey version: 0 is grey, 1 the image."""
    return pixels if pixels.ndim == 2 else cv2.addWeighted(pixels, factor, grey(pixels), 1.0 - factor, _TRUNCATE)


def contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blended with its mean grey."""
    plane = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return lookup(pixels, _blended(int(cv2.mean(plane)[0] + 0.5), factor))


def brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blended with black."""
    return lookup(pixels, _blended(0, factor))


def _blended(base: int, factor: float) -> np.ndarray:
    """All values blended with one, in single precision and truncated, as in Pillow."""
    blend = np.float32(base) + np.float32(factor) * (_VALUES - base).astype(np.float32)
    return blend.clip(0, 255).astype(np.uint8)


def sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blended with its smoothed version, whose border is the image's."""
    smooth = pixels.copy()
    if min(pixels.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(pixels, -1, _SMOOTH)[1:-1, 1:-1]
    return cv2.addWeighted(pixels, factor, smooth, 1.0 - factor, _TRUNCATE)


def rotate(pixels: np.ndarray, degrees: float, resample: Image.Resampling, fill: Fill) -> np.ndarray:
    """Turned about the centre, counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    width, height = size(pixels)
    x, y = width / 2, height / 2
    return affine(pixels, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), resample, fill)


def affine(pixels: np.ndarray, matrix: Sequence[float], resample: Image.Resampling, fill: Fill) -> np.ndarray:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), for matrix = (a, b, c, d, e, f)."""
    a, b, c, d, e, f = matrix
    if (a, b, d, e) == (1, 0, 0, 1):
        return _moved(_moved(pixels, c, 1, resample, fill), f, 0, resample, fill)
    if (a, d, e, f) == (1, 0, 1, 0):
        return _sheared(pixels, b, c, resample, fill)
    if (a, b, c, e) == (1, 0, 0, 1):
        return _transposed(_sheared(_transposed(pixels), d, f, resample, fill))
    # OpenCV counts from the centre of the first pixel, Pillow from its corner.
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    flags = _FILTERS[resample] | cv2.WARP_INVERSE_MAP
    # Filters of 16 values are faster on float32 than on uint8.
    warped = cv2.warpAffine(pixels.astype(np.float32), centred, size(pixels), flags=flags, borderValue=fill)
    return cv2.addWeighted(warped, 1.0, warped, 0.0, _TRUNCATE, dtype=cv2.CV_8U)


def _sheared(pixels: np.ndarray, slope: float, offset: float, resample: Image.Resampling, fill: Fill) -> np.ndarray:
    """The pixel at (x, y) comes from (x + slope * y + offset, y): a row needs one filter of 4 values."""
    height, width = pixels.shape[:2]
    channels = pixels.size // (height * width)
    offsets = offset + slope * (np.arange(height) + 0.5)
    whole = np.floor(offsets).astype(np.int64)
    # Windows that reach outside may go on in other rows: those pixels are filled in the end.
    line = width + 4
    more = 1 + int(np.abs(whole).max()) // line
    padded = cv2.copyMakeBorder(pixels, more, more, 2, 2, cv2.BORDER_REPLICATE).reshape(-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width + 3) * channels)
    rows = windows[((np.arange(height) + more) * line + 1 + whole) * channels].astype(np.int16)
    weights = _whole_weights(resample)[np.rint((offsets - whole) * _STEPS).astype(np.int64)]
    sheared = _filtered(rows, weights, channels).reshape(pixels.shape)
    x = np.arange(width, dtype=np.int32)
    first, last = (np.ceil(edge - 0.5 - offsets).astype(np.int32)[:, None] for edge in (0, width))
    return cv2.copyTo(_filled(pixels.shape, fill), ((x < first) | (x >= last)).view(np.uint8), sheared)


def _filtered(rows: np.ndarray, weights: np.ndarray, channels: int) -> np.ndarray:
    """Each row, int16 [H, (W + 3) * channels], filtered by its own 4 weights: uint8 [H, W * channels]."""
    first, *others = (rows[:, k * channels : rows.shape[1] - (3 - k) * channels] for k in range(4))
    total = first * weights[:, :1]
    product = np.empty_like(total)
    for k, values in enumerate(others, 1):
        total += np.multiply(values, weights[:, k : k + 1], out=product)
    total >>= _SHIFT
    return total.clip(0, 255, out=total).astype(np.uint8)


@functools.cache
def _whole_weights(resample: Image.Resampling) -> np.ndarray:
    """Weights of 4 neighbours in 1 / _ONE for values at 0, 1 / _STEPS, ..., 1: int16 [_STEPS + 1, 4]; they sum up to
    one."""
    t = np.arange(_STEPS + 1) / _STEPS
    weights = np.rint(_ONE * _between(t, resample)).astype(np.int16).T.copy()
    weights[np.arange(len(t)), np.where(t < 0.5, 1, 2)] += _ONE - weights.sum(axis=1, dtype=np.int16)
    return weights


@functools.lru_cache(maxsize=4)
def _filled(shape: tuple[int, ...], fill: Fill) -> np.ndarray:
    """An image in one colour, which nobody may write to."""
    image = np.full(shape, fill, dtype=np.uint8)
    image.flags.writeable = False
    return image


def _transposed(pixels: np.ndarray) -> np.ndarray:
    return cv2.transpose(pixels)


def _moved(pixels: np.ndarray, offset: float, axis: int, resample: Image.Resampling, fill: Fill) -> np.ndarray:
    """The pixel at x comes from x + offset along an axis: one filter of 4 values, not of 16 as in an affine map."""
    if not offset:
        return pixels
    whole, length = math.floor(offset), pixels.shape[axis]
    if offset != whole:
        kernel = _between(offset - whole, resample)
        kernel, anchor = (kernel[None], (1, 0)) if axis == 1 else (kernel[:, None], (0, 1))
        pixels = cv2.filter2D(pixels, -1, kernel, None, anchor, _TRUNCATE, cv2.BORDER_REPLICATE)
    first, last = max(0, -whole), min(length, math.ceil(length - 0.5 - offset))
    if first >= last:
        return _filled(pixels.shape, fill)
    top, bottom, left, right = (0, 0, first, length - last) if axis == 1 else (first, length - last, 0, 0)
    kept = pixels[(slice(None),) * axis + (slice(first + whole, last + whole),)]
    return cv2.copyMakeBorder(kept, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)


def _between(t: float | np.ndarray, resample: Image.Resampling) -> np.ndarray:
    """Weights of the pixels at -1, 0, 1 and 2 for the value at t, from 0 to 1 (Keys 1981, with Pillow's a = -1)."""
    if resample == Image.Resampling.BILINEAR:
        return np.array([0.0 * t, 1.0 - t, t, 0.0 * t])
    return np.array([-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3])


def grey(pixels: np.ndarray) -> np.ndarray:
    """Without colours; the shape stays."""
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(pixels: np.ndarray, radius: float) -> np.ndarray:
    """Blurred by a Gaussian with that deviation, in pixels."""
    return cv2.GaussianBlur(pixels, (0, 0), radius, borderType=cv2.BORDER_REPLICATE)


def mirror(pixels: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return cv2.flip(pixels, 1)


def size(pixels: np.ndarray) -> tuple[int, int]:
    """Width and height."""
    return pixels.shape[1], pixels.shape[0]


def resize(pixels: np.ndarray, new_size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Pixels at (width, height) = new_size.

    OpenCV's filters look at 2 or 4 pixels however much an image shrinks, so that fine patterns turn into coarse ones.
    A filter of 3 x 3 pixels before takes them out: what follows is 1.0 level away from Pillow's bicubic on average,
    against 2.2 without, and takes a quarter of its time. An image that shrinks to less than 40 % of a side is averaged
    over areas.
    """
    if size(pixels) == tuple(new_size):
        return pixels
    shrink = [old / new for old, new in zip(size(pixels), new_size)]
    if max(shrink) > _MOST_FILTERED:
        return cv2.resize(pixels, new_size, interpolation=cv2.INTER_AREA)
    weights = [_neighbours(factor) for factor in shrink]
    if any(weights):
        sides = tuple(3 if weight else 1 for weight in weights)
        x, y = (_deviation(weight) for weight in weights)
        pixels = cv2.GaussianBlur(pixels, sides, x, sigmaY=y)
    return cv2.resize(pixels, new_size, interpolation=_FILTERS[resample])


def _neighbours(shrink: float) -> float:
    """Share of each of the two neighbours along a side that becomes 1 / shrink as long; fitted to Pillow's bicubic on
    photographs, between 1 and 2.5 times."""
    return min(0.21 * shrink - 0.19, 0.3) if shrink > 1.0 else 0.0


def _deviation(weight: float) -> float:
    """Deviation of the Gaussian of 3 pixels whose outer two have that weight each."""
    return math.sqrt(0.5 / math.log((1.0 - 2.0 * weight) / weight)) if weight else 1.0
