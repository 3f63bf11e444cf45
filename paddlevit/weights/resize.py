"""Position embeddings for another image size, interpolated as models do it (half-pixel centres, no antialiasing).

Written in NumPy because it then works in the array's own precision; Pillow and OpenCV treat the borders or small maps
differently, and Paddle would need the array on its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Callable

import numpy as np


def can_resize(name: str, have: Sequence[int], want: Sequence[int]) -> bool:
    """Whether `name` is a position embedding whose shape `have` differs from `want` in its positions alone."""
    if name.rsplit(".", 1)[-1] != "pos_embed" or len(have) != len(want) or min(have, default=0) < 1:
        return False
    if len(have) == 4:
        return tuple(have[:2]) == tuple(want[:2])
    if len(have) != 3 or (have[0], have[2]) != (want[0], want[2]):
        return False
    return _is_sequence(name) or isqrt(have[1]) ** 2 == have[1] and isqrt(want[1]) ** 2 == want[1]


def resize_position_embedding(name: str, embedding: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """`embedding` with the positions of `shape`.

    Maps [1, C, H, W] and the token grid `pos_embed` [1, H * H, C] are interpolated bicubically. The embeddings
    [1, L, C] inside HVT's layers belong to tokens that max pooling has shortened as a sequence: linearly along L.
    """
    if _is_sequence(name):
        return _resize(embedding, 1, shape[1], lambda x: np.maximum(1 - x, 0))
    if embedding.ndim == 4:
        return _resize(_resize(embedding, 2, shape[2], _cubic), 3, shape[3], _cubic)
    side, new_side = isqrt(embedding.shape[1]), isqrt(shape[1])
    grid = embedding.reshape(-1, side, side, embedding.shape[2])
    return _resize(_resize(grid, 1, new_side, _cubic), 2, new_side, _cubic).reshape(tuple(shape))


def _is_sequence(name: str) -> bool:
    return "." in name


def _resize(array: np.ndarray, axis: int, size: int, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`array` with `size` positions along `axis`: sums of the old ones, weighed by distance; outside is the border."""
    old = array.shape[axis]
    centre = (np.arange(size) + 0.5) * old / size - 0.5
    position = np.arange(-2, old + 2)
    weights = kernel(np.abs(centre[:, None] - position))
    inside = np.zeros((old, size))
    np.add.at(inside, np.clip(position, 0, old - 1), weights.T)
    return np.moveaxis(np.tensordot(inside.astype(array.dtype), array, axes=(0, axis)), 0, axis)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with the coefficient that PyTorch, Paddle and OpenCV use (Keys 1981, equation 4)."""
    a = -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.select([x <= 1, x < 2], [near, far])
