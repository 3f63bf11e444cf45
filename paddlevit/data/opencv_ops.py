"""What augmentations are made of, on arrays uint8 [H, W, 3] or [H, W], by OpenCV: several times as fast as Pillow.

Operations that map values to values, or count them, give Pillow's own pixels. `colour`, `contrast` and `sharpness`
differ by at most 1 level from rounding. Geometric ones interpolate as Pillow does up to a few levels (OpenCV's cubic
is a little sharper, and places are rounded to 1/32 pixel), and meet `fill` otherwise within a pixel of the border.
"""

import math
from typing import Any, List, Sequence, Tuple, Union

import cv2
import numpy as np
from PIL import Image

Fill = Union[int, Tuple[int, ...]]

_FILTERS = {Image.Resampling.BICUBIC: cv2.INTER_CUBIC, Image.Resampling.BILINEAR: cv2.INTER_LINEAR}
_VALUES = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_SHIFT = 6
_ONE = 1 << _SHIFT  # weights are whole multiples of 1/64, so that sums fit into int16
_TRUNCATE = -0.499  # OpenCV rounds a blend, Pillow truncates it
_MOST_FILTERED = 2.5


def lookup(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Every value v becomes table[v], or table[v, c] in channel c; uint8 [256] or [256, 3]."""
    return cv2.LUT(pixels, table if table.ndim == 1 else table[None])


def autocontrast(pixels: np.ndarray) -> np.ndarray:
    """Every channel stretched to 0 to 255."""
    return lookup(pixels, _stacked([_stretched(counts) for counts in _histograms(pixels)]))


def _stretched(counts: np.ndarray) -> np.ndarray:
    present = np.flatnonzero(counts)
    low, high = int(present[0]), int(present[-1])
    if high == low:
        return _VALUES.astype(np.uint8)
    scale = 255.0 / (high - low)
    return (_VALUES * scale - low * scale).clip(0, 255).astype(np.uint8)


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Every channel's histogram made flat."""
    return lookup(pixels, _stacked([_flattened(counts) for counts in _histograms(pixels)]))


def _flattened(counts: np.ndarray) -> np.ndarray:
    present = counts[counts > 0]
    step = int(present[:-1].sum()) // 255
    if len(present) <= 1 or step == 0:
        return _VALUES.astype(np.uint8)
    below = np.cumsum(counts) - counts
    return np.minimum((step // 2 + below) // step, 255).astype(np.uint8)


def _histograms(pixels: np.ndarray) -> np.ndarray:
    """How often each value stands in each channel: int64 [channels, 256]."""
    channels = range(1 if pixels.ndim == 2 else pixels.shape[2])
    images: List[Any] = [pixels]
    counts = [cv2.calcHist(images, [c], None, [256], [0, 256]) for c in channels]
    return np.stack(counts).reshape(-1, 256).astype(np.int64)


def _stacked(tables: Sequence[np.ndarray]) -> np.ndarray:
    return tables[0] if len(tables) == 1 else np.stack(tables, axis=1)


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
    return np.rint(warped).clip(0, 255).astype(np.uint8)


def _sheared(pixels: np.ndarray, slope: float, offset: float, resample: Image.Resampling, fill: Fill) -> np.ndarray:
    """The pixel at (x, y) comes from (x + slope * y + offset, y): a row needs one filter of 4 values."""
    height, width = pixels.shape[:2]
    channels = pixels.size // (height * width)
    offsets = offset + slope * (np.arange(height) + 0.5)
    whole = np.floor(offsets).astype(np.int64)
    pad, span = int(np.abs(whole).max()) + 2, width * channels
    padded = cv2.copyMakeBorder(pixels, 0, 0, pad, pad, cv2.BORDER_REPLICATE).reshape(-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, span + 3 * channels)
    starts = np.arange(height) * (width + 2 * pad) + pad - 1 + whole
    rows = windows[starts * channels].astype(np.int16)
    total = np.full((height, span), _ONE // 2, dtype=np.int16)
    for k, weight in enumerate(_whole_weights(offsets - whole, resample)):
        if weight.any():
            total += rows[:, k * channels : k * channels + span] * weight[:, None]
    total >>= _SHIFT
    sheared = total.clip(0, 255, out=total).astype(np.uint8).reshape(pixels.shape)
    x = np.arange(width) + 0.5 + offsets[:, None]
    outside = ((x < 0) | (x >= width)).view(np.uint8)
    return cv2.copyTo(_filled(pixels, fill), outside, sheared)


def _whole_weights(t: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    """Weights of 4 neighbours in 1 / _ONE, int16 [4, len(t)]; they sum up to one."""
    weights = np.rint(_ONE * _between(t, resample)).astype(np.int16)
    weights[np.where(t < 0.5, 1, 2), np.arange(len(t))] += _ONE - weights.sum(axis=0, dtype=np.int16)
    return weights


def _filled(pixels: np.ndarray, fill: Fill) -> np.ndarray:
    """An image like `pixels` in one colour."""
    colour = np.asarray(fill, dtype=np.uint8).reshape(1, 1, -1)
    return cv2.resize(colour, size(pixels), interpolation=cv2.INTER_NEAREST).reshape(pixels.shape)


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
        pixels = cv2.filter2D(pixels, -1, kernel, anchor=anchor, borderType=cv2.BORDER_REPLICATE)
    first, last = max(0, -whole), min(length, math.ceil(length - 0.5 - offset))
    if first >= last:
        return _filled(pixels, fill)
    top, bottom, left, right = (0, 0, first, length - last) if axis == 1 else (first, length - last, 0, 0)
    kept = pixels[(slice(None),) * axis + (slice(first + whole, last + whole),)]
    return cv2.copyMakeBorder(kept, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)


def _between(t: Union[float, np.ndarray], resample: Image.Resampling) -> np.ndarray:
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


def size(pixels: np.ndarray) -> Tuple[int, int]:
    """Width and height."""
    return pixels.shape[1], pixels.shape[0]


def resize(pixels: np.ndarray, new_size: Tuple[int, int], resample: Image.Resampling) -> np.ndarray:
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
