"""The operations of RandAugment and AutoAugment once more: NumPy, one function each, from their definitions."""

from __future__ import annotations

import numpy as np
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC


def luma(pixels):
    """ITU-R 601-2 in 16-bit fixed point, as Pillow's mode L."""
    if pixels.shape[2] == 1:
        return pixels[:, :, 0].astype(np.int64)
    return (pixels.astype(np.int64) @ [19595, 38470, 7471] + 0x8000) >> 16


def blend(degenerate, pixels, factor):
    """degenerate + factor * (pixels - degenerate), clipped and truncated, in single precision."""
    start, end = np.broadcast_arrays(degenerate, pixels)
    mixed = start.astype(np.float32) + np.float32(factor) * (end.astype(np.int32) - start).astype(np.float32)
    return mixed.clip(0, 255).astype(np.uint8)


def per_channel(function):
    return lambda pixels, *args: np.stack([function(channel, *args) for channel in np.moveaxis(pixels, 2, 0)], axis=-1)


@per_channel
def autocontrast(channel):
    low, high = int(channel.min()), int(channel.max())
    if high <= low:
        return channel
    scale = 255.0 / (high - low)
    return (channel * scale + -low * scale).clip(0, 255).astype(np.uint8)


@per_channel
def equalize(channel):
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    if np.count_nonzero(counts) <= 1 or step == 0:
        return channel
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return ((step // 2 + before) // step).clip(0, 255).astype(np.uint8)[channel]


def color(pixels, factor):
    return blend(luma(pixels)[:, :, None], pixels, factor)


def contrast(pixels, factor):
    return blend(np.array(int(luma(pixels).mean() + 0.5)), pixels, factor)


def brightness(pixels, factor):
    return blend(np.array(0), pixels, factor)


@per_channel
def smooth(channel):
    """3 x 3 mean in which the centre counts five times; the outermost pixels stay."""
    result = channel.copy()
    wide = channel.astype(np.int64)
    height, width = channel.shape
    total = 4 * wide[1:-1, 1:-1]
    for dy in range(3):
        for dx in range(3):
            total = total + wide[dy : height - 2 + dy, dx : width - 2 + dx]
    result[1:-1, 1:-1] = (total / 13 + 0.5).astype(np.uint8)
    return result


def sharpness(pixels, factor):
    return blend(smooth(pixels), pixels, factor)


def cubic(v, t):
    """The cubic through v[1] and v[2] with parameter a = -1, which Pillow's geometric transforms use."""
    p1, p2 = v[1], -v[0] + v[2]
    p3, p4 = 2 * (v[0] - v[1]) + v[2] - v[3], -v[0] + v[1] - v[2] + v[3]
    return p1 + t * (p2 + t * (p3 + t * p4))


def affine(pixels, matrix, resample, fill):
    """Output pixel (x, y) comes from matrix @ (x, y, 1), both at pixel centres; `fill` where that lies outside."""
    height, width, channels = pixels.shape
    y, x = np.mgrid[:height, :width] + 0.5
    a, b, c, d, e, f = matrix
    source_x, source_y = a * x + b * y + c, d * x + e * y + f
    outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
    left, top = np.floor(source_x - 0.5).astype(int), np.floor(source_y - 0.5).astype(int)
    tx, ty = (source_x - 0.5 - left)[:, :, None], (source_y - 0.5 - top)[:, :, None]
    taps = range(-1, 3) if resample == BICUBIC else range(2)

    def at(dy, dx):
        return pixels[(top + dy).clip(0, height - 1), (left + dx).clip(0, width - 1)].astype(np.float64)

    rows = []
    for dy in taps:
        values = [at(dy, dx) for dx in taps]
        rows.append(cubic(values, tx) if resample == BICUBIC else values[0] + (values[1] - values[0]) * tx)
    result = cubic(rows, ty) if resample == BICUBIC else rows[0] + (rows[1] - rows[0]) * ty
    return np.where(outside[:, :, None], np.array(fill), result.clip(0, 255)).astype(np.uint8)


def rotation(pixels, degrees, resample, fill):
    """Counter-clockwise about the centre."""
    height, width, _ = pixels.shape
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x0, y0 = width / 2, height / 2
    matrix = (cos, -sin, x0 - cos * x0 + sin * y0, sin, cos, y0 - sin * x0 - cos * y0)
    return affine(pixels, matrix, resample, fill)


def table(function):
    """A reference that maps values, whatever their place."""
    return lambda pixels, level, draw: function(pixels.astype(int), level).astype(np.uint8)


def geometric(matrix_of):
    def reference(pixels, level, draw):
        height, width, _ = pixels.shape
        return affine(pixels, matrix_of(draw.sign * level / 10, width, height), draw.resample, draw.fill)

    return reference


def enhanced(function):
    def increasing(pixels, level, draw):
        return function(pixels, max(0.1, 1 + draw.sign * 0.9 * level / 10))

    def plain(pixels, level, draw):
        return function(pixels, 0.1 + 1.8 * level / 10)

    return increasing, plain


SHARED = {
    "AutoContrast": lambda pixels, level, draw: autocontrast(pixels),
    "Equalize": lambda pixels, level, draw: equalize(pixels),
    "Invert": lambda pixels, level, draw: 255 - pixels,
    "Rotate": lambda pixels, level, draw: rotation(pixels, draw.sign * level * 3, draw.resample, draw.fill),
    "SolarizeAdd": table(lambda p, level: np.where(p < 128, np.minimum(p + int(level / 10 * 110), 255), p)),
    "ShearX": geometric(lambda m, width, height: (1, m * 0.3, 0, 0, 1, 0)),
    "ShearY": geometric(lambda m, width, height: (1, 0, 0, m * 0.3, 1, 0)),
    "TranslateX": geometric(lambda m, width, height: (1, 0, m * 0.45 * width, 0, 1, 0)),
    "TranslateY": geometric(lambda m, width, height: (1, 0, 0, 0, 1, m * 0.45 * height)),
}
ENHANCED = {"Color": color, "Contrast": contrast, "Brightness": brightness, "Sharpness": sharpness}
RAND_REFERENCE = {
    **SHARED,
    "Posterize": table(lambda p, level: p >> (4 + int(level / 10 * 4)) << (4 + int(level / 10 * 4))),
    "Solarize": table(lambda p, level: np.where(p < 256 - int(level / 10 * 256), p, 255 - p)),
    **{name: enhanced(function)[0] for name, function in ENHANCED.items()},
}
AUTO_REFERENCE = {
    **SHARED,
    "Posterize": table(lambda p, level: p >> (4 - int(level / 10 * 4)) << (4 - int(level / 10 * 4))),
    "Solarize": table(lambda p, level: np.where(p < int(level / 10 * 256), p, 255 - p)),
    **{name: enhanced(function)[1] for name, function in ENHANCED.items()},
}
