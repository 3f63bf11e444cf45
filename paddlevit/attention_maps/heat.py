"""Where a model looks, as heat over its image: class activation, attention, and rollout through all its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddlevit.errors import UserError
from paddlevit.layers import evaluating
from paddlevit.runtime import kernels
from paddlevit.views import Grid, StageView, Window

OF_A_CLASS = ("grad-cam", "grad-rollout")
_RESIDUAL = 0.5  # share of a token that passes an attention layer beside it (Abnar & Zuidema 2020, section 3)
ClassIndex = Union[None, int, Sequence[int]]  # the top-1 class, one for all images, or one for each


def methods(model: nn.Layer) -> tuple[str, ...]:
    """The methods of `heat_map` that `model` has, the one that localises a class best first.

    Where attention is global from the first map on (PiT), class tokens have gathered what they need before the last
    maps: grad-rollout points at the object there, and Grad-CAM often beside it.
    """
    views = _stage_views(model)
    if not views[-1].attentions:
        return ("grad-cam",)
    if not views[-1].num_tokens:
        return ("grad-cam", "attention", "rollout")
    first, second = OF_A_CLASS if _rollout_start(views) else OF_A_CLASS[::-1]
    return (first, second, "attention", "rollout")


def class_activation(model: nn.Layer, images: Tensor, class_index: ClassIndex = None) -> np.ndarray:
    """Evidence for a class in each image, by the gradient-weighted method that suits the model: see `heat_map`."""
    return heat_map(model, images, methods(model)[0], class_index=class_index)


def heat_map(
    model: nn.Layer, images: Tensor, method: str, *, class_index: ClassIndex = None, stage: int | None = None
) -> np.ndarray:
    """What one of `methods(model)` shows of `images` [N, C, H, W], as large as they are, [N, H, W], 0 to 1.

    `class_index` is one class, or one for each image, by default the top-1 class. An image without evidence for it is
    all zero. Attention (the mean over the heads) and rollout are spread from their smallest to their largest value:
    they have no zero of their own. Raises UserError for what the model does not have, or means nothing to the method.
    """
    if method not in methods(model):
        raise UserError(f"method {method}, allowed for {type(model).__name__}: {', '.join(methods(model))}")
    if class_index is not None and method not in OF_A_CLASS:
        raise UserError(f"class {class_index}: {method} does not depend on a class, {' and '.join(OF_A_CLASS)} do")
    if stage is not None and method.endswith("rollout"):
        raise UserError(f"stage {stage}: {method} goes through all stages")
    views = _stage_views(model)
    if method == "grad-cam":
        return grad_cam(model, images, class_index, stage=stage)
    size = images.shape[2:]
    if method == "attention":
        heat = class_attention(model, images, stage=stage).mean(axis=1)
        return stretched(on_pixels(heat, views[_position(views, stage)].grids[0], size))
    grid = views[_rollout_start(views)].grids[0]
    if method == "rollout":
        return stretched(on_pixels(attention_rollout(model, images), grid, size))
    return _scaled(on_pixels(class_rollout(model, images, class_index), grid, size))


def feature_maps(model: nn.Layer, images: Tensor) -> dict[str, list[np.ndarray]]:
    """The maps at the end of every stage by its name, from the highest resolution to the lowest.

    `images` float32 [N, C, H, W] -> arrays [N, channels, h, w]. HVT has a map for each block.
    """
    views = _stage_views(model)
    with paddle.no_grad():
        _, outputs = _run_watched(model, images, [view.layer for view in views])
        return {
            view.name: [_on_grid(x, view).numpy() for x in view.maps(output)] for view, output in zip(views, outputs)
        }


def grad_cam(
    model: nn.Layer, images: Tensor, class_index: ClassIndex = None, *, stage: int | None = None
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): evidence for a class in each image, [N, H, W], 0 to 1.

    `stage` 1, 2, ... takes the maps at its end, by default those of the last one. Where only class tokens reach the
    head, these are the tokens that the last attention reads; several maps (HRFormer) are added up. A channel's weight
    is the sum of its gradient where the paper has the mean: for one map that is a factor which scaling removes, and it
    gives maps of several resolutions one measure. Class and errors as in `heat_map`.
    """
    views = _stage_views(model)
    view = views[_position(views, stage)]
    by_token = view.read_by_token if view is views[-1] else None
    target = view.layer if by_token is None else by_token
    with paddle.enable_grad(), kernels.left_alone():
        logits, (output, end) = _run_watched(model, images, [target, view.layer], cut=target)
        parts = [output] if isinstance(output, Tensor) else [part for part in output if part is not None]
        gradients: Any = paddle.grad(_class_score(logits, class_index), parts, allow_unused=True)
        if isinstance(output, Tensor):
            (gradients,) = gradients
    maps = view.maps
    if by_token is not None:
        places = _places(view, end)
        maps = lambda x: [_as_map(x[:, view.num_tokens :].transpose([0, 2, 1]), places)]  # noqa: E731
    total = np.zeros([images.shape[0], *images.shape[2:]], dtype="float32")
    with paddle.no_grad():
        for feature_map, gradient, grid in zip(maps(output), maps(gradients), view.grids):
            weights = gradient.sum(axis=list(range(2, gradient.ndim)), keepdim=True)
            heat = _on_grid((feature_map * weights).sum(axis=1, keepdim=True), view)
            total += on_pixels(heat[:, 0].numpy(), grid, images.shape[2:])
    return _scaled(total)


def class_attention(model: nn.Layer, images: Tensor, *, stage: int | None = None) -> np.ndarray:
    """How each head of a stage's last attention divides the view of the class token, [N, heads, h, w].

    `stage` 1, 2, ..., by default the last. The values of a head are shares: with that of the class tokens themselves
    they sum to one. With two class tokens it is the mean of both, as for the logits; without any, of all tokens. CvT's
    shares of pooled keys are divided among the places that these come from. Raises UserError for a stage without it.
    """
    views = _stage_views(model)
    at = _position(views, stage)
    view = views[at]
    if not view.attentions:
        having = [f"{i + 1} ({other.name})" for i, other in enumerate(views) if other.attentions]
        where = f"in stage {', '.join(having)}" if having else "in no stage"
        raise UserError(f"{type(model).__name__} has global attention {where}, not in {view.name}")
    last, tokens = view.attentions[-1], view.num_tokens
    with paddle.no_grad():
        _, (end, probabilities) = _run_watched(model, images, [view.layer, last.probabilities])
        asking = probabilities[:, :, :tokens] if tokens else probabilities
    places = _places(view, end)
    shares = _unpooled(asking.mean(axis=2).numpy(), tokens, last.pooling, places)[..., tokens:]
    # Of a sequence, a block's attention sees what the block before has left; the first one sees the patches.
    before = views[at - 1].spread if at else None
    return _as_map(shares if before is None else shares @ before.T, places)


def attention_rollout(model: nn.Layer, images: Tensor) -> np.ndarray:
    """Attention rollout (Abnar & Zuidema 2020, section 3): shares of the patches in what the head sees, [N, h, w].

    Every attention layer of `images` [N, C, H, W], averaged over its heads, counts half and the residual branch the
    other half; pooled tokens draw on the places below their window (`Window.shares`). It begins at the first stage from
    which on all have global attention: PiT's and HVT's first, CvT's last. The shares and that of the class tokens
    themselves sum to one. Raises UserError where the last stage has no global attention.
    """
    views = _stage_views(model)
    if not views[-1].attentions:
        raise UserError(f"{type(model).__name__} has no global attention to follow")
    views = views[_rollout_start(views) :]
    with paddle.no_grad():
        _, places, probabilities = _watch_attention(model, images, views)
        matrices = [x.mean(axis=1).numpy() for x in probabilities]
    return _rolled(views, places, matrices, beside=_RESIDUAL, through=1 - _RESIDUAL)


def class_rollout(model: nn.Layer, images: Tensor, class_index: ClassIndex = None) -> np.ndarray:
    """Rollout of the attention that supports a class (Chefer et al. 2021, "Generic Attention-model Explainability for
    Interpreting Bi-Modal and Encoder-Decoder Transformers", section 3), [N, h, w], not below 0.

    As `attention_rollout`, but every probability is weighted by its gradient, negative products are left out, and the
    residual branch counts fully. Class as in `heat_map`. Raises UserError, also where there are no class tokens.
    """
    views = _stage_views(model)
    if not views[-1].num_tokens or not views[-1].attentions:
        raise UserError(f"{type(model).__name__} has no class token whose attention could be followed")
    views = views[_rollout_start(views) :]
    images = images.detach()
    images.stop_gradient = False  # so that there are gradients in a frozen model too
    with paddle.enable_grad(), kernels.left_alone():
        logits, places, probabilities = _watch_attention(model, images, views)
        gradients = paddle.grad(_class_score(logits, class_index), probabilities)
    with paddle.no_grad():
        matrices = [F.relu(x * gradient).mean(axis=1).numpy() for x, gradient in zip(probabilities, gradients)]
    return _rolled(views, places, matrices, beside=1, through=1)


def on_pixels(heat: np.ndarray, grid: Grid, size: Sequence[int]) -> np.ndarray:
    """Places [N, h, w] -> pixels [N, H, W], every place at the middle of what it sees, linear between them.

    Stretching the map over the image would move the heat of strided convolutions to the lower right, by half a place.
    """

    def shares(places: int, pixels: int) -> np.ndarray:
        at = ((np.arange(pixels) + 0.5 - grid.first) / grid.stride).clip(0, places - 1)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(places))).astype("float32")

    rows, columns = map(shares, heat.shape[1:], size)
    return rows @ heat @ columns.T


def stretched(heat: np.ndarray) -> np.ndarray:
    """Each of [N, H, W] from 0 at its smallest value to 1 at its largest."""
    low, high = (edge(heat, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    return (heat - low) / np.where(high > low, high - low, 1)


def _scaled(heat: np.ndarray) -> np.ndarray:
    """What is above 0, each of [N, H, W] divided by its largest value, if that is not 0."""
    heat = np.maximum(heat, 0)
    largest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)


def _stage_views(model: nn.Layer) -> list[StageView]:
    """The views of `model`. Raises UserError where it has none."""
    if not hasattr(model, "views"):
        raise UserError(f"{type(model).__name__} has no method views() that says what can be seen in it")
    return model.views()


def _position(views: Sequence[StageView], stage: int | None) -> int:
    """Where stage 1, 2, ... (None: the last) is in `views`. Raises UserError where there is none."""
    if stage is None:
        return len(views) - 1
    if not 1 <= stage <= len(views):
        raise UserError(f"stage {stage}, allowed: 1 ({views[0].name}) to {len(views)} ({views[-1].name})")
    return stage - 1


def _rollout_start(views: Sequence[StageView]) -> int:
    """Where the first view is from which on all have global attention."""
    return max((i + 1 for i, view in enumerate(views) if not view.attentions), default=0)


def _watch_attention(
    model: nn.Layer, images: Tensor, views: Sequence[StageView]
) -> tuple[Tensor, list[Sequence[int]], list[Tensor]]:
    """The logits, the places of each view, and the probabilities of all their attention layers."""
    layers = [layer.probabilities for view in views for layer in view.attentions]
    logits, kept = _run_watched(model, images, [*(view.layer for view in views), *layers])
    return logits, [_places(view, output) for view, output in zip(views, kept)], kept[len(views) :]


def _rolled(
    views: Sequence[StageView], places: Sequence, matrices: list[np.ndarray], *, beside: float, through: float
) -> np.ndarray:
    """From what the head sees back to the places of the first view, [N, h, w]; `matrices` [N, T + L, T + L'].

    At every attention layer shares count `beside` for the token itself and `through` for what it attends to.
    """
    tokens, length = views[-1].num_tokens, int(np.prod(places[-1]))
    shares = np.zeros([len(matrices[0]), tokens + length], dtype="float32")  # of the tokens in what the head sees:
    shares[:, : tokens or length] = 1 / (tokens or length)  # the class tokens or, without them, all evenly
    left = list(matrices)
    for view, size in zip(reversed(views), reversed(places)):
        shares = _unpooled(shares, view.num_tokens, view.pooling, size)
        for layer in reversed(view.attentions):
            attended = np.einsum("nq,nqk->nk", shares, left.pop())
            shares = beside * shares + through * _unpooled(attended, view.num_tokens, layer.pooling, size)
    return _as_map(shares[:, views[0].num_tokens :], places[0])


def _unpooled(
    shares: np.ndarray, num_tokens: int, pooling: Window | np.ndarray | None, places: Sequence[int]
) -> np.ndarray:
    """Shares of pooled tokens [..., T + L'] -> of those before [..., T + L]; class tokens are not pooled."""
    if pooling is None:
        return shares
    matrix = pooling.shares(places) if isinstance(pooling, Window) else pooling
    return np.concatenate([shares[..., :num_tokens], shares[..., num_tokens:] @ matrix], axis=-1)


def _places(view: StageView, output: Any) -> Sequence[int]:
    """The size of the largest map in what the view's layer has returned: (H, W), or (L,) of a sequence."""
    return view.maps(output)[0].shape[2:]


def _as_map(x: Any, places: Sequence[int]) -> Any:
    """[..., L] -> [..., h, w], as `places` say or, where these are a sequence, a square."""
    side = round(x.shape[-1] ** 0.5)
    return x.reshape([*x.shape[:-1], *(places if len(places) == 2 else (side, side))])


def _on_grid(x: Tensor, view: StageView) -> Tensor:
    """[N, C, H, W] as it is; a sequence [N, C, L] spread over its places, [N, C, H, W]."""
    return x if view.spread is None else _as_map(paddle.matmul(x, paddle.to_tensor(view.spread.T)), x.shape[2:])


def _run_watched(
    model: nn.Layer, images: Tensor, layers: Sequence[nn.Layer], *, cut: nn.Layer | None = None
) -> tuple[Tensor, list[Any]]:
    """The logits [N, K] of `images` [N, C, H, W] in evaluation, and what each of `layers` returned.

    The output of `cut`, one of them, becomes leaves: gradients end there, and exist in a frozen model too.
    """
    kept: dict[nn.Layer, Any] = {}

    def keep(layer: nn.Layer, inputs: Any, output: Any) -> Any:
        kept[layer] = _as_leaves(output) if layer is cut else output
        return kept[layer]

    with contextlib.ExitStack() as stack:
        for layer in set(layers):
            stack.callback(layer.register_forward_post_hook(keep).remove)
        stack.enter_context(evaluating(model))
        return model(images), [kept[layer] for layer in layers]


def _as_leaves(output: Any) -> Any:
    """A tensor or several (or None), detached. Paddle cannot differentiate by two parts of one tensor as they are."""
    if not isinstance(output, Tensor):
        return output and type(output)(_as_leaves(part) for part in output)
    leaf = output.detach()
    leaf.stop_gradient = False
    return leaf


def _class_score(logits: Tensor, class_index: ClassIndex) -> Tensor:
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
