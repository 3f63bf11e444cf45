"""Names of HRFormer's parameters in other people's checkpoints (see `paddlevit.weights.convert.Table`).

Our names are the official ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relative_position_index(shape: Sequence[int]) -> np.ndarray:
    """Row of the bias table, of `shape` [(2 W - 1)^2, heads], for each pair of tokens of a window, [W^2, W^2].

    Liu et al. 2021, section 3.2.
    """
    side = round(shape[0] ** 0.5)
    window = (side + 1) // 2
    row, col = np.divmod(np.arange(window * window), window)
    return (row[:, None] - row + window - 1) * side + col[:, None] - col + window - 1


SOURCES = {
    "official": {
        "layout": "torch",
        "computed": {".relative_position_index": (".relative_position_bias_table", relative_position_index)},
    },
}
