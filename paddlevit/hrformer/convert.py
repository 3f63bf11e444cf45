"""Names of HRFormer's parameters in other people's checkpoints (`paddlevit/hvt/convert.py` explains the tables).

Our names are the official ones. `structural` names buffers that follow from the architecture: the file's content is
compared with the function's and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relative_position_index(shape: Sequence[int]) -> np.ndarray:
    """Row of the bias table for each pair of tokens of a window, [W * W, W * W] (Liu et al. 2021, section 3.2)."""
    window = round(shape[0] ** 0.5)
    row, col = np.divmod(np.arange(window * window), window)
    row_offset = row[:, None] - row[None, :] + window - 1
    col_offset = col[:, None] - col[None, :] + window - 1
    return row_offset * (2 * window - 1) + col_offset


SOURCES = {
    "official": {
        "layout": "torch",
        "rules": (),
        "structural": {"relative_position_index": relative_position_index},
    },
}
