"""The learning rate of a run, a pure function of the epoch."""

from __future__ import annotations

import math
from typing import Callable

from yacs.config import CfgNode


def scaled_lr(lr: float, images_per_step: int, reference: int | None) -> float:
    """`lr`, stated for `reference` images per optimizer step, at `images_per_step` (Goyal et al. 2017, 2.1)."""
    return lr if reference is None else lr * images_per_step / reference


def lr_schedule(
    *, peak: float, start: float, end: float, warmup_epochs: float, num_epochs: int
) -> Callable[[float], float]:
    """lr_at(epoch): linear from `start` to `peak` over the warm-up, then half a cosine to `end`.

    The cosine counts from epoch 0, not from the end of the warm-up, as in the official recipes (Loshchilov & Hutter
    2017, equation 5, with one period of `num_epochs`). A run that is shorter than its warm-up ends within it.
    """

    def lr_at(epoch: float) -> float:
        if epoch < warmup_epochs:
            return start + (peak - start) * epoch / warmup_epochs
        return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * min(epoch / num_epochs, 1.0)))

    return lr_at


def build_lr_schedule(config: CfgNode, images_per_step: int) -> Callable[[float], float]:
    """lr_at(epoch) of `config`; the epoch is a fraction, of which a schedule by epochs uses the whole part."""
    train = config.TRAIN

    def scaled(lr: float) -> float:
        return scaled_lr(lr, images_per_step, train.LINEAR_SCALED_LR)

    schedule = lr_schedule(
        peak=scaled(train.BASE_LR),
        start=scaled(train.WARMUP_START_LR) if train.SCALE_ALL_LRS else train.WARMUP_START_LR,
        end=scaled(train.END_LR) if train.SCALE_ALL_LRS else train.END_LR,
        warmup_epochs=train.WARMUP_EPOCHS,
        num_epochs=train.NUM_EPOCHS,
    )
    if train.LR_SCHEDULE == "iteration":
        return schedule
    delay = 1 if train.LR_SCHEDULE == "previous_epoch" else 0
    return lambda epoch: schedule(float(max(math.floor(epoch) - delay, 0)))
