"""Recomputation: blocks keep no activations and compute them again in the backward pass."""

from __future__ import annotations

import itertools
from typing import Any, Callable

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from paddlevit.errors import UserError
from paddlevit.paddle_internals import set_momentum
from paddlevit.training.running_statistics import restored_momenta


def recompute_blocks(model: nn.Layer) -> None:
    """Let every block of `model` keep its input only, in training (Chen et al. 2016, section 4).

    Losses and gradients stay the same, also where random numbers are drawn; running statistics move once. Call it after
    the model was copied: the copy's blocks would compute with the weights of this one. Raises UserError for a model
    without blocks, and where Paddle cannot recompute them.
    """
    blocks = [layer for layer in model.sublayers() if getattr(layer, "recomputable", False)]
    if not blocks:
        raise UserError(f"TRAIN.RECOMPUTE: {type(model).__name__} has no blocks to recompute")
    normed = any(isinstance(layer, nn.BatchNorm2D) for block in blocks for layer in block.sublayers())
    if normed and paddle.__version__.startswith(("3.0.", "3.1.", "3.2.")):  # seen with 3.0.0, 3.1.1 and 3.2.2
        raise UserError(
            f"TRAIN.RECOMPUTE: blocks with BatchNorm ({type(model).__name__}) need PaddlePaddle 3.3 or later; this is "
            f"{paddle.__version__}, which crashes"
        )
    for block in blocks:
        block.forward = _recomputed(block)


def _recomputed(block: nn.Layer) -> Callable[..., Tensor]:
    forward = block.forward
    norms = [layer for layer in block.sublayers() if isinstance(layer, nn.BatchNorm2D)]

    def run(*inputs: Any) -> Tensor:
        if not block.training:
            return forward(*inputs)
        passes = itertools.count()

        def one_pass(*inputs: Any) -> Tensor:
            with restored_momenta(norms):
                for norm in norms if next(passes) else ():
                    set_momentum(norm, 1.0)  # the running statistics stay: the old ones get the whole weight
                return forward(*inputs)

        # The reentrant version gives no gradients to a block whose input wants none, and hides its parameters from
        # DataParallel.
        return recompute(one_pass, *inputs, use_reentrant=False)

    return run
