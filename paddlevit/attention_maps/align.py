"""From the places of a network's maps to the pixels of its image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddlevit.views import Grid


def on_pixels(heat: np.ndarray, grid: Grid, size: Sequence[int]) -> np.ndarray:
    """Places [N, h, w] -> pixels [N, H, W], every place at the middle of what it sees, smooth between them.

    A strided convolution with padding looks at the left end of its share of an even map: stretching the map over the
    image would move the heat to the right and down, by up to half of a place.
    """
    rows, columns = (_interpolation(places, pixels, grid) for places, pixels in zip(heat.shape[1:], size))
    return rows @ heat @ columns.T


def _interpolation(places: int, pixels: int, grid: Grid) -> np.ndarray:
    """Cubic convolution (Keys 1981, equation 15) between middles of places, constant outside; [pixels, places]."""
    at = ((np.arange(pixels) + 0.5 - grid.first) / grid.stride).clip(0, places - 1)
    away = np.abs(at[:, None] - np.arange(-1, places + 1))
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weights = np.where(away < 1, near, np.where(away < 2, far, 0))
    weights[:, 1] += weights[:, 0]  # beyond the ends the outermost places go on
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1].astype("float32")
