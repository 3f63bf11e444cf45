"""The learning rate of a run, a pure function of the epoch."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Callable

from yacs.config import CfgNode

logger = logging.getLogger(__name__)


def scaled_lr(lr: float, images_per_step: int, reference: int | None) -> float:
    """`lr`, stated for `reference` images per optimizer step, at `images_per_step` (Goyal et al. 2017, 2.1)."""
    return lr if reference is None else lr * images_per_step / reference


@dataclass
class Schedule:
    """lr_at(epoch): linear from `start` to `peak` over the warm-up, then down to `end` by `decay`.

    cosine: half a cosine (Loshchilov & Hutter 2017, equation 5, with one period of `num_epochs`); step: a tenth of the
    way after each `step_epochs`; constant: none. The decay counts from epoch 0, not from the end of the warm-up, as in
    the official recipes; with `prefix` it does. A run that is shorter than its warm-up ends within it.
    """

    peak: float
    start: float
    end: float
    warmup_epochs: float
    num_epochs: int
    decay: str = "cosine"
    step_epochs: int = 30
    prefix: bool = False

    def __call__(self, epoch: float) -> float:
        if epoch < self.warmup_epochs:
            return self.start + (self.peak - self.start) * epoch / self.warmup_epochs
        before = self.warmup_epochs if self.prefix else 0.0
        left = 1.0  # of the way from peak to end
        if self.decay == "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * min((epoch - before) / (self.num_epochs - before), 1.0)))
        elif self.decay == "step":
            left = 0.1 ** math.floor((epoch - before) / self.step_epochs)
        return self.end + (self.peak - self.end) * left


def peak_lr(lr_at: Callable[[float], float], num_epochs: int, steps_per_epoch: int, accum_iter: int) -> float:
    """The largest learning rate of any optimizer step. A schedule rises, then falls: it is near the best epoch."""
    best = max(range(num_epochs), key=lr_at)
    steps = range(0, steps_per_epoch, accum_iter)
    return max(lr_at(epoch + step / steps_per_epoch) for epoch in {max(best - 1, 0), best} for step in steps)


def build_lr_schedule(config: CfgNode, images_per_step: int) -> Callable[[float], float]:
    """lr_at(epoch) of `config`; the epoch is a fraction, of which a schedule by epochs uses the whole part.

    Only the peak is scaled unless TRAIN.SCALE_ALL_LRS: on a small batch the warm-up could start, or the run end, above
    it. Both are capped at the peak, and the log says so.
    """
    train = config.TRAIN
    peak = scaled_lr(train.BASE_LR, images_per_step, train.LINEAR_SCALED_LR)
    edges = {"WARMUP_START_LR": train.WARMUP_START_LR, "END_LR": train.END_LR}
    if train.SCALE_ALL_LRS:
        edges = {key: scaled_lr(lr, images_per_step, train.LINEAR_SCALED_LR) for key, lr in edges.items()}
    used = list(edges) if train.WARMUP_EPOCHS else ["END_LR"]
    above = [f"TRAIN.{key} {edges[key]:.3g}" for key in used if edges[key] > peak]
    if above:
        logger.warning("above the peak learning rate of %.3g, and capped at it: %s", peak, ", ".join(above))
    schedule = Schedule(
        peak=peak,
        start=min(edges["WARMUP_START_LR"], peak),
        end=min(edges["END_LR"], peak),
        warmup_epochs=train.WARMUP_EPOCHS,
        num_epochs=train.NUM_EPOCHS,
        decay=train.LR_DECAY,
        step_epochs=train.LR_STEP_EPOCHS,
        prefix=train.WARMUP_PREFIX,
    )
    if train.LR_SCHEDULE == "iteration":
        return schedule
    delay = 1 if train.LR_SCHEDULE == "previous_epoch" else 0
    return lambda epoch: schedule(float(max(math.floor(epoch) - delay, 0)))
