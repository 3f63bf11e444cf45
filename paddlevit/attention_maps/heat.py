"""Every method by its name, each as one map of heat for an image."""

from __future__ import annotations

import numpy as np
from paddle import Tensor, nn

from paddlevit.attention_maps.activation import grad_cam, scaled
from paddlevit.attention_maps.align import on_pixels
from paddlevit.attention_maps.attention import attention_rollout, class_attention, class_rollout, rollout_start
from paddlevit.attention_maps.watch import ClassIndex, position, stage_views
from paddlevit.errors import UserError

OF_A_CLASS = ("grad-cam", "grad-rollout")


def methods(model: nn.Layer) -> tuple[str, ...]:
    """The methods of `heat_map` that `model` has, the one that suits it best to show a class first.

    Where class tokens follow attention from the first map on (PiT), they have long gathered from everywhere what they
    need when they come to the last maps: there grad-rollout points at things, and Grad-CAM often beside them.
    """
    views = stage_views(model)
    if not views[-1].attentions:
        return ("grad-cam",)
    if not views[-1].num_tokens:
        return ("grad-cam", "attention", "rollout")
    first, second = OF_A_CLASS if rollout_start(views) else OF_A_CLASS[::-1]
    return (first, second, "attention", "rollout")


def class_activation(model: nn.Layer, images: Tensor, class_index: ClassIndex = None) -> np.ndarray:
    """Where each image speaks for a class, by the gradient-weighted method that suits the network, [N, H, W], 0 to 1.

    `images` are float32 [N, C, H, W] as the network takes them; `class_index` is one class, or one for each image, and
    by default the class that the network finds. An image where nothing speaks for the class is all zero. Raises
    UserError for a class that the network does not have.
    """
    if methods(model)[0] == "grad-cam":
        return grad_cam(model, images, class_index)
    return _class_rollout(model, images, class_index)


def heat_map(
    model: nn.Layer,
    images: Tensor,
    method: str,
    *,
    class_index: int | None = None,
    stage: int | None = None,
) -> np.ndarray:
    """What one of `methods(model)` shows of `images` [N, C, H, W], as large as they are, [N, H, W], 0 to 1.

    Attention (the mean over the heads) and rollout are spread from their smallest to their largest value: they have no
    zero of their own. Raises UserError for a method, class or stage that the network does not have, and where a class
    or a stage means nothing to the method.
    """
    if method not in methods(model):
        raise UserError(f"method {method}, allowed for {type(model).__name__}: {', '.join(methods(model))}")
    if class_index is not None and method not in OF_A_CLASS:
        raise UserError(f"class {class_index}: {method} does not depend on a class, {' and '.join(OF_A_CLASS)} do")
    if stage is not None and method.endswith("rollout"):
        raise UserError(f"stage {stage}: {method} goes through all stages")
    views = stage_views(model)
    if method == "grad-cam":
        return grad_cam(model, images, class_index, stage=stage)
    if method == "grad-rollout":
        return _class_rollout(model, images, class_index)
    if method == "rollout":
        heat, view = attention_rollout(model, images), views[rollout_start(views)]
    else:
        heat, view = class_attention(model, images, stage=stage).mean(axis=1), views[position(views, stage)]
    return _stretched(on_pixels(heat, view.grids[0], images.shape[2:]))


def _class_rollout(model: nn.Layer, images: Tensor, class_index: ClassIndex) -> np.ndarray:
    views = stage_views(model)
    heat = class_rollout(model, images, class_index)
    return scaled(np.maximum(on_pixels(heat, views[rollout_start(views)].grids[0], images.shape[2:]), 0))


def _stretched(heat: np.ndarray) -> np.ndarray:
    low, high = (edge(heat, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    return (heat - low) / np.where(high > low, high - low, 1)
