"""Run a network once and keep what some of its layers return."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple, Union

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlevit.errors import UserError
from paddlevit.views import StageView

ClassIndex = Union[None, int, Sequence[int]]  # the likeliest, one for all images, or one for each


class Watched(NamedTuple):
    """A layer and what to keep of its output."""

    layer: nn.Layer
    keep: Callable[[Any], Any]
    goes_on: bool = False  # whether the network goes on with what is kept, and not with the output


def run_watched(model: nn.Layer, images: Tensor, watched: Sequence[Watched]) -> tuple[Tensor, list[Any]]:
    """The logits [N, K] of `images` [N, C, H, W] in evaluation, and what is kept of each layer's output."""
    kept: list[Any] = [None] * len(watched)

    def keeper(i: int) -> Callable:
        def keep(layer: nn.Layer, inputs: Any, output: Any) -> Any:
            kept[i] = watched[i].keep(output)
            return kept[i] if watched[i].goes_on else None

        return keep

    with contextlib.ExitStack() as stack:
        for i, (layer, _, _) in enumerate(watched):
            stack.callback(layer.register_forward_post_hook(keeper(i)).remove)
        stack.enter_context(_evaluation(model))
        return model(images), kept


def class_score(logits: Tensor, class_index: ClassIndex) -> Tensor:
    """The sum over the images of the logit of each image's class; the images do not depend on each other.

    Raises UserError for a class that there is not.
    """
    images, classes = logits.shape
    if class_index is None:
        index = logits.argmax(axis=1)
    else:
        index = paddle.to_tensor(np.broadcast_to(np.asarray(class_index, dtype="int64"), [images]).copy())
        for wrong in (i for i in index.tolist() if not 0 <= i < classes):
            raise UserError(f"class {wrong}, allowed: 0 to {classes - 1}")
    return paddle.take_along_axis(logits, index.unsqueeze(1), axis=1).sum()


def stage_views(model: nn.Layer) -> list[StageView]:
    """The views of `model`. Raises UserError where it has none."""
    if not hasattr(model, "views"):
        raise UserError(f"{type(model).__name__} has no method views() that says what can be seen in it")
    return model.views()


def position(views: Sequence[StageView], stage: int | None) -> int:
    """Where stage 1, 2, ... (None: the last) is in `views`. Raises UserError where there is none."""
    if stage is None:
        return len(views) - 1
    if not 1 <= stage <= len(views):
        raise UserError(f"stage {stage}, allowed: 1 ({views[0].name}) to {len(views)} ({views[-1].name})")
    return stage - 1


def places_of(view: StageView) -> Callable[[Any], tuple[int, ...]]:
    """From what the view's layer returns to the size of its largest map: (H, W), or (L,) of a sequence."""
    return lambda output: tuple(view.maps(output)[0].shape[2:])


@contextlib.contextmanager
def _evaluation(model: nn.Layer) -> Iterator[None]:
    training = [layer for layer in model.sublayers(include_self=True) if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True
