"""Feature maps, and where in them a class comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlevit.attention_maps.align import on_pixels
from paddlevit.attention_maps.watch import (
    ClassIndex,
    Watched,
    class_score,
    places_of,
    position,
    run_watched,
    stage_views,
)
from paddlevit.views import StageView


def feature_maps(model: nn.Layer, images: Tensor) -> dict[str, list[np.ndarray]]:
    """The maps at the end of every stage by its name, from the highest resolution to the lowest.

    `images` float32 [N, C, H, W] -> arrays [N, channels, h, w]. HVT has a map for each block.
    """
    views = stage_views(model)
    with paddle.no_grad():
        _, outputs = run_watched(model, images, [Watched(view.layer, view.maps) for view in views])
    return {view.name: [on_grid(x, view).numpy() for x in maps] for view, maps in zip(views, outputs)}


def grad_cam(
    model: nn.Layer, images: Tensor, class_index: ClassIndex = None, *, stage: int | None = None
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): where each image speaks for a class, [N, H, W], 0 to 1.

    `images` are float32 [N, C, H, W] as the network takes them; `class_index` is one class, or one for each image, and
    by default the class that the network finds. `stage` 1, 2, ... takes the maps at its end, by default those of the
    last one. Where only class tokens reach the head, these are the tokens that the last attention reads; several maps
    (HRFormer) are added up. An image without anything that speaks for the class is all zero.

    Raises UserError for a class or stage that the network does not have.
    """
    views = stage_views(model)
    view = views[position(views, stage)]
    by_token = view is views[-1] and view.read_by_token is not None
    target = view.read_by_token if by_token else view.layer
    watched = [Watched(target, _as_leaves, goes_on=True), Watched(view.layer, places_of(view))]
    with paddle.enable_grad():
        logits, (output, places) = run_watched(model, images, watched)
        gradients = _gradients(class_score(logits, class_index), output)
    with paddle.no_grad():
        if by_token:
            pairs = [(_without_tokens(output, view, places), _without_tokens(gradients, view, places))]
        else:
            pairs = list(zip(view.maps(output), view.maps(gradients)))
        return scaled(_weighted_sum(pairs, view, images.shape[2:]))


def on_grid(x: Tensor, view: StageView) -> Tensor:
    """[N, C, H, W] as it is; a sequence [N, C, L] spread over its places, [N, C, H, W]."""
    if view.spread is None:
        return x
    side = round(len(view.spread) ** 0.5)
    return paddle.matmul(x, paddle.to_tensor(view.spread.T)).reshape([*x.shape[:2], side, side])


def _as_leaves(output: Any) -> Any:
    """The tensors that a layer returns, one or several, without what they come from: gradients end at them.

    So there are gradients in a frozen network too. Where two tensors are parts of one, Paddle cannot differentiate by
    them as they are.
    """
    if isinstance(output, Tensor):
        leaf = output.detach()
        leaf.stop_gradient = False
        return leaf
    return type(output)(part if part is None else _as_leaves(part) for part in output)


def _gradients(score: Tensor, output: Any) -> Any:
    """The gradient of `score` for every tensor in `output`, None where it does not depend on it."""
    if isinstance(output, Tensor):
        return paddle.grad(score, [output])[0]
    tensors = [part for part in output if part is not None]
    gradients = iter(paddle.grad(score, tensors, allow_unused=True))
    return [None if part is None else next(gradients) for part in output]


def _without_tokens(x: Tensor, view: StageView, places: Sequence[int]) -> Tensor:
    """Tokens [N, T + H W, C] -> map [N, C, H, W]."""
    return x[:, view.num_tokens :].transpose([0, 2, 1]).reshape([x.shape[0], x.shape[2], *places])


def _weighted_sum(pairs: Sequence[tuple[Tensor, Tensor]], view: StageView, size: Sequence[int]) -> np.ndarray:
    """Equation 2 for the maps of a stage and their gradients, [N, H, W].

    A channel's weight is the sum of its gradient where the paper has the mean: for one map that is a factor which
    scaling removes, and it gives maps of several resolutions one measure.
    """
    total = np.zeros([pairs[0][0].shape[0], *size], dtype="float32")
    for (feature_map, gradient), grid in zip(pairs, view.grids):
        weights = gradient.sum(axis=list(range(2, gradient.ndim)), keepdim=True)
        heat = on_grid((feature_map * weights).sum(axis=1, keepdim=True), view)
        total += on_pixels(heat[:, 0].numpy(), grid, size)
    return np.maximum(total, 0)


def scaled(heat: np.ndarray) -> np.ndarray:
    """Divided by the largest value of each image, if that is not 0."""
    largest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)
