"""Attention of the tokens that the head sees, in one layer and through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddlevit.attention_maps.watch import (
    ClassIndex,
    Watched,
    class_score,
    places_of,
    position,
    run_watched,
    stage_views,
)
from paddlevit.errors import UserError
from paddlevit.views import AttentionView, StageView, Window

RESIDUAL = 0.5  # share of a token that passes an attention layer beside it (Abnar & Zuidema 2020, section 3)


def class_attention(model: nn.Layer, images: Tensor, *, stage: int | None = None) -> np.ndarray:
    """How each head of a stage's last attention divides the view of the class token, [N, heads, H, W].

    `images` float32 [N, C, H, W]; `stage` 1, 2, ..., by default the last. The values of a head are shares: with that of
    the class tokens themselves they sum to one. With two class tokens it is the mean of both, as for the logits;
    without any, the mean of all tokens. CvT's shares of pooled keys are divided among the places that these come from.

    Raises UserError where the stage, or all of the network, has no such attention.
    """
    views = stage_views(model)
    at = position(views, stage)
    view = views[at]
    if not view.attentions:
        having = [f"{i + 1} ({other.name})" for i, other in enumerate(views) if other.attentions]
        where = f"in stage {', '.join(having)}" if having else "in no stage"
        raise UserError(f"{type(model).__name__} has global attention {where}, not in {view.name}")
    last = view.attentions[-1]
    with paddle.no_grad():
        watched = [Watched(view.layer, places_of(view)), Watched(last.probabilities, lambda output: output)]
        _, (places, probabilities) = run_watched(model, images, watched)
    tokens = _over_tokens(_queried(probabilities, view.num_tokens).numpy(), last, view.num_tokens, places)
    tokens = tokens[..., view.num_tokens :]
    if view.spread is None:
        return tokens.reshape([*tokens.shape[:2], *places])
    # A sequence. What a block's attention sees is what the block before has left; the first one sees the patches.
    before = views[at - 1].spread if at else None
    tokens = tokens if before is None else tokens @ before.T
    side = round(tokens.shape[-1] ** 0.5)
    return tokens.reshape([*tokens.shape[:2], side, side])


def attention_rollout(model: nn.Layer, images: Tensor) -> np.ndarray:
    """Attention rollout (Abnar & Zuidema 2020, section 3): shares of the patches in what the head sees, [N, H, W].

    `images` float32 [N, C, H, W]. Every attention layer, averaged over its heads, counts half and the residual branch
    the other half. A token that pooling has made draws on the places below its window, most on the middle
    (`Window.shares`). The way begins at the first stage from which on all have global attention: PiT's and HVT's first,
    CvT's last. The shares and that of the class tokens themselves sum to one.

    Raises UserError where the last stage has no global attention.
    """
    views = stage_views(model)
    if not views[-1].attentions:
        raise UserError(f"{type(model).__name__} has no global attention to follow")
    views = views[rollout_start(views) :]
    with paddle.no_grad():
        _, kept = run_watched(model, images, _rollout_watched(views, _mean_over_heads))
    sizes, matrices = kept[: len(views)], kept[len(views) :]
    return _rolled(views, sizes, matrices, beside=RESIDUAL, through=1 - RESIDUAL)


def class_rollout(model: nn.Layer, images: Tensor, class_index: ClassIndex = None) -> np.ndarray:
    """Rollout of the attention that speaks for a class (Chefer et al. 2021, "Generic Attention-model Explainability for
    Interpreting Bi-Modal and Encoder-Decoder Transformers", section 3), [N, H, W], not below 0.

    As `attention_rollout`, but every probability is weighted by its gradient, what speaks against the class is left
    out, and the residual branch counts fully. `class_index` is one class, or one for each of `images` [N, C, H, W], by
    default the likeliest. Raises UserError where there are no class tokens, and for a class that there is not.
    """
    views = stage_views(model)
    if not views[-1].num_tokens or not views[-1].attentions:
        raise UserError(f"{type(model).__name__} has no class token whose attention could be followed")
    views = views[rollout_start(views) :]
    images = images.detach()
    images.stop_gradient = False  # so that there are gradients in a frozen network too
    with paddle.enable_grad():
        logits, kept = run_watched(model, images, _rollout_watched(views, lambda output: output))
        sizes, probabilities = kept[: len(views)], kept[len(views) :]
        gradients = paddle.grad(class_score(logits, class_index), probabilities)
    with paddle.no_grad():
        matrices = [_mean_over_heads(F.relu(x * gradient)) for x, gradient in zip(probabilities, gradients)]
    return _rolled(views, sizes, matrices, beside=1, through=1)


def _rollout_watched(views: Sequence[StageView], keep: Callable[[Tensor], Any]) -> list[Watched]:
    """The size of every view, then what `keep` makes of the probabilities of every attention layer."""
    layers = [layer.probabilities for view in views for layer in view.attentions]
    return [Watched(view.layer, places_of(view)) for view in views] + [Watched(layer, keep) for layer in layers]


def _rolled(
    views: Sequence[StageView], sizes: Sequence, matrices: Sequence[np.ndarray], *, beside: float, through: float
) -> np.ndarray:
    """From what the head sees back to the places of the first view, [N, H, W]; `matrices` [N, T + L, T + L'].

    At every attention layer shares count `beside` for the token itself and `through` for what it attends to.
    """
    left = list(matrices)
    shares = _seen_by_head(len(left[0]), views[-1], sizes[-1])
    for view, places in zip(reversed(views), reversed(sizes)):
        if view.pooling is not None:
            pooling = view.pooling.shares(places) if isinstance(view.pooling, Window) else view.pooling
            shares = _through(shares, view.num_tokens, pooling)
        for layer in reversed(view.attentions):
            attended = np.einsum("nq,nqk->nk", shares, left.pop())
            shares = beside * shares + through * _over_tokens(attended, layer, view.num_tokens, places)
    shares = shares[:, views[0].num_tokens :]
    side = round(shares.shape[1] ** 0.5)
    return shares.reshape([-1, *(sizes[0] if len(sizes[0]) == 2 else (side, side))])


def rollout_start(views: Sequence[StageView]) -> int:
    """Where the first view is from which on all have global attention."""
    return max((i + 1 for i, view in enumerate(views) if not view.attentions), default=0)


def _mean_over_heads(probabilities: Tensor) -> np.ndarray:
    return probabilities.mean(axis=1).numpy()


def _queried(probabilities: Tensor, num_tokens: int) -> Tensor:
    """[N, heads, queries, keys] -> [N, heads, keys]: what the class tokens ask for or, without them, all tokens."""
    return (probabilities[:, :, :num_tokens] if num_tokens else probabilities).mean(axis=2)


def _seen_by_head(images: int, view: StageView, places: Sequence[int]) -> np.ndarray:
    """Shares of the tokens in what the head sees, [N, T + L]: the class tokens or, without them, all tokens evenly."""
    length = int(np.prod(places))
    seen = np.zeros([images, view.num_tokens + length], dtype="float32")
    seen[:, : view.num_tokens or length] = 1 / (view.num_tokens or length)
    return seen


def _over_tokens(shares: np.ndarray, layer: AttentionView, num_tokens: int, places: Sequence[int]) -> np.ndarray:
    """Shares of keys [..., T + L'] -> shares of tokens [..., T + L]."""
    return shares if layer.pooling is None else _through(shares, num_tokens, layer.pooling.shares(places))


def _through(shares: np.ndarray, num_tokens: int, pooling: np.ndarray) -> np.ndarray:
    """Shares of pooled tokens [..., T + L'] -> shares of those before [..., T + L]; class tokens are not pooled."""
    return np.concatenate([shares[..., :num_tokens], shares[..., num_tokens:] @ pooling], axis=-1)
