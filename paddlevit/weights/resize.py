"""Position embeddings for another image size, interpolated as networks do it (half-pixel centres, no antialiasing).

Written in NumPy because it then works in the array's own precision; Pillow and OpenCV treat the borders or small maps
differently, and Paddle would need the array on its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np

# Keys' cubic kernel with the coefficient that PyTorch, Paddle and OpenCV use (Keys 1981, equation 4).
_CUBIC = -0.75


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
    if embedding.ndim == 4:
        return _resize(_resize(embedding, 2, shape[2], cubic=True), 3, shape[3], cubic=True)
    if _is_sequence(name):
        return _resize(embedding, 1, shape[1], cubic=False)
    side, new_side = isqrt(embedding.shape[1]), isqrt(shape[1])
    grid = embedding.reshape(-1, side, side, embedding.shape[2])
    grid = _resize(_resize(grid, 1, new_side, cubic=True), 2, new_side, cubic=True)
    return grid.reshape(tuple(shape))


def _is_sequence(name: str) -> bool:
    return "." in name


def _resize(array: np.ndarray, axis: int, size: int, *, cubic: bool) -> np.ndarray:
    matrix = _interpolation(array.shape[axis], size, cubic=cubic).astype(array.dtype)
    return np.moveaxis(np.tensordot(matrix, array, axes=(1, axis)), 0, axis)


def _interpolation(size: int, new_size: int, *, cubic: bool) -> np.ndarray:
    """Weights [new_size, size] of the old positions in each new one; positions outside count as the border's."""
    centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(centre)
    matrix = np.zeros((new_size, size))
    for tap in range(-1, 3) if cubic else range(2):
        distance = np.abs(centre - first - tap)
        weight = _cubic(distance) if cubic else 1 - distance
        np.add.at(matrix, (np.arange(new_size), np.clip(first + tap, 0, size - 1).astype(int)), weight)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)
