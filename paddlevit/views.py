"""What a model says about its stages, so that attention maps and Grad-CAM work without knowing its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
from paddle import Tensor, nn


class Window(NamedTuple):
    """A convolution or max pooling that makes one token of several, along both axes of a map or along a sequence."""

    kernel: int
    stride: int
    padding: int

    def shares(self, places: Sequence[int]) -> np.ndarray:
        """How much of each place is in each pooled one, [L', L]; `places` is (H, W) or (L,), and rows sum to one.

        The shares fall linearly to the sides of a window, to nothing at a distance of the stride. So the places have
        equal shares in all the pooled ones together, which an even share of each window would not give them.
        """
        per_axis = [self._along(length) for length in places]
        return per_axis[0] if len(places) == 1 else np.kron(*per_axis)

    def _along(self, length: int) -> np.ndarray:
        pooled_length = (length + 2 * self.padding - self.kernel) // self.stride + 1
        middle = self.stride * np.arange(pooled_length) - self.padding + (self.kernel - 1) / 2
        away = np.abs(np.arange(length)[None, :] - middle[:, None])
        shares = np.where(away <= (self.kernel - 1) / 2, self.stride - away, 0).clip(0)
        return (shares / shares.sum(axis=1, keepdims=True)).astype("float32")


class AttentionView(NamedTuple):
    """An attention layer, global over the tokens of its stage."""

    probabilities: nn.Layer  # the layer that returns them, [N, heads, T + L, T + L']
    pooling: Window | None = None  # makes the L' places of its values from the L of the map; None: L' is L


class Grid(NamedTuple):
    """Where the places of a map lie in the input image, in pixels, the same along both axes."""

    first: float  # the centre of what the first place sees, from the image's edge
    stride: int  # from one place to the next

    def pooled(self, pooling: Window) -> Grid:
        """The grid that `pooling` makes of this one."""
        return Grid(
            self.first + self.stride * ((pooling.kernel - 1) / 2 - pooling.padding), self.stride * pooling.stride
        )


PIXELS = Grid(0.5, 1)


class StageView(NamedTuple):
    """A part of a model that returns feature maps; parts come in the order in which they run.

    A map is [N, C, H, W], or [N, C, L] where tokens were pooled along a sequence and no longer form a grid; then
    `spread` [H * W, L], H = W, has the share that each place of the grid takes from each token.
    """

    name: str
    layer: nn.Layer
    maps: Callable[[Any], list[Tensor]]  # the maps in what `layer` returns, from the highest resolution to the lowest
    grids: Sequence[Grid]  # of each map; of the grid that `spread` leads to
    attentions: Sequence[AttentionView] = ()
    num_tokens: int = 0  # T, the class and distillation tokens before those of the map
    pooling: None | Window | np.ndarray = None  # of its tokens, before the next view; or the shares [L', L]
    spread: np.ndarray | None = None
    read_by_token: nn.Layer | None = None  # returns [N, T + L, C], the last that class tokens see of the map


def spread_back(shares: np.ndarray) -> np.ndarray:
    """[L', places], the share of each place in a token -> [places, L'], the mean over the tokens that hold a place.

    Rows sum to one, or are zero for a place that is in no token.
    """
    total = shares.sum(axis=0)
    return (shares / np.where(total > 0, total, 1)).T
