"""Test-time augmentation: the mean of the logits of an image and of some that are made of it."""

from __future__ import annotations

from typing import Any, Callable

import paddle.nn.functional as F
from paddle import Tensor, nn

_SHARE = 32  # of the side, that shift moves an image by: 7 of 224 pixels


def averaged(model: Callable[[Tensor], Any], images: Tensor, tta: str) -> Any:
    """Mean of what `model` returns for images [N, C, H, W] and what `tta` makes of them: with flip mirrored, with shift
    moved towards the four corners, their edges repeated; with none nothing.
    """
    views = [images]
    if tta == "flip":
        views.append(images.flip([3]))
    elif tta == "shift":
        height, width = images.shape[2:]
        by = max(width // _SHARE, 1)
        wider = F.pad(images, [by] * 4, mode="replicate")
        views += [wider[:, :, y : y + height, x : x + width] for y in (0, 2 * by) for x in (0, 2 * by)]
    first, *others = map(model, views)
    return sum(others, first) / len(views) if others else first


class Averaged(nn.Layer):
    """`model` with test-time augmentation `tta`, for evaluation."""

    def __init__(self, model: nn.Layer, tta: str) -> None:
        super().__init__()
        self.model = model
        self.tta = tta

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W]."""
        return averaged(lambda view: self.model(view).astype("float32"), images, self.tta)
