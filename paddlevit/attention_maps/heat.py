"""Every method by its name, each as one map of heat for an image."""

from typing import Optional, Tuple

import numpy as np
from paddle import Tensor, nn

from paddlevit.attention_maps.activation import class_activation
from paddlevit.attention_maps.align import on_pixels
from paddlevit.attention_maps.attention import attention_rollout, class_attention, rollout_start
from paddlevit.attention_maps.watch import position, stage_views
from paddlevit.errors import UserError


def methods(model: nn.Layer) -> Tuple[str, ...]:
    """The methods of `heat_map` that `model` has: those of attention where its last stage has it over all tokens."""
    return ("grad-cam", "attention", "rollout") if stage_views(model)[-1].attentions else ("grad-cam",)


def heat_map(
    model: nn.Layer,
    images: Tensor,
    method: str = "grad-cam",
    *,
    class_index: Optional[int] = None,
    stage: Optional[int] = None,
) -> np.ndarray:
    """What `class_activation`, `class_attention` (mean over the heads) or `attention_rollout` see, [N, H, W], 0 to 1.

    As large as `images` [N, C, H, W]. Attention is spread from its smallest to its largest value: it has no zero of its
    own. Raises UserError for a method, class or stage that the network does not have, and where a class or a stage
    means nothing to the method.
    """
    if method not in methods(model):
        raise UserError(f"method {method}, allowed for {type(model).__name__}: {', '.join(methods(model))}")
    if method == "grad-cam":
        return class_activation(model, images, class_index, stage=stage)
    if class_index is not None:
        raise UserError(f"class {class_index}: {method} does not depend on a class, grad-cam does")
    if method == "rollout" and stage is not None:
        raise UserError(f"stage {stage}: rollout goes through all stages")
    views = stage_views(model)
    if method == "rollout":
        heat, view = attention_rollout(model, images), views[rollout_start(views)]
    else:
        heat, view = class_attention(model, images, stage=stage).mean(axis=1), views[position(views, stage)]
    return _stretched(on_pixels(heat, view.grids[0], images.shape[2:]))


def _stretched(heat: np.ndarray) -> np.ndarray:
    low, high = (edge(heat, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    return (heat - low) / np.where(high > low, high - low, 1)
