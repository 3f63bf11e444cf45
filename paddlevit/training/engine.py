"""The training loop and exact evaluation. `Trainer.train_step` is one batch, `run.train` a whole run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddlevit.errors import UserError
from paddlevit.layers import evaluating
from paddlevit.metrics import averages
from paddlevit.paddle_internals import master_weights
from paddlevit.runtime.launcher import heartbeat
from paddlevit.runtime.process import all_reduce_max, all_reduce_sum, world_size
from paddlevit.runtime.seeding import Key, seed_step
from paddlevit.runtime.settings import turn_off_stride_kernels
from paddlevit.training.ema import ModelEma
from paddlevit.training.gradients import LossScale, clip
from paddlevit.training.objectives import Objective
from paddlevit.training.optim import Shards, load_optimizer_arrays, optimizer_arrays, set_lr
from paddlevit.training.running_statistics import RunningStatistics

Batches = Iterable[tuple[Tensor, Tensor]]

_PROGRESS = ("epoch", "step", "updates", "to_evaluate", "best")  # fields of Trainer, saved under these names
_STEPS_BETWEEN_CHECKS = 16  # of several processes: asking the others makes the device wait


class Stopped(Exception):  # noqa: N818 - no error
    """Training was asked to stop by the signal `signum`; the trainer stands between two optimizer steps."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


@dataclass
class Trainer:
    """All that takes part in training, and all that a resumed run must restore.

    Randomness is drawn from (seed, epoch, step, rank): no generator's state needs saving.
    """

    model: nn.Layer
    objective: Objective
    mixup: Callable[[Tensor, Tensor, Key], tuple[Tensor, Tensor]]
    optimizer: paddle.optimizer.Optimizer
    lr_at: Callable[[float], float]  # learning rate by epochs done, with their fraction
    steps_per_epoch: int  # batches
    accum_iter: int = 1  # batches per optimizer step
    seed: int = 0
    ema: ModelEma | None = None
    forward: Any = None  # what the objective calls: the model, DataParallel around it, or its program
    grad_clip: float | None = None  # largest global norm of the gradient
    shards: Shards = field(default_factory=Shards)  # which process keeps which part of the optimizer's state
    loss_scale: LossScale = field(default_factory=LossScale)
    max_nonfinite: int = 10  # optimizer steps in a row that may be skipped
    autocast: Callable[[], AbstractContextManager] = nullcontext
    fixed: dict[str, Any] = field(default_factory=dict)  # by name, what must not change in the middle of an epoch
    stop_signal: int = 0  # set by a signal's handler

    epoch: int = 0  # epochs done
    step: int = 0  # batches done in the current epoch
    updates: int = 0  # optimizer steps done
    to_evaluate: bool = False  # whether the epoch that was done last has still to be evaluated
    best: dict[str, Any] = field(default_factory=dict)  # what is known of the best weights
    lr: float = 0.0  # of the optimizer step that the last batch belongs to

    def __post_init__(self) -> None:
        turn_off_stride_kernels()
        self.forward = self.forward or self.model
        self._trainable = [param for param in self.model.parameters() if not param.stop_gradient]
        self._statistics = RunningStatistics([self.model] if self.ema is None else [self.model, self.ema.model])
        self._updating = False
        self._steps_between_checks = self.accum_iter * (1 if world_size() == 1 else _STEPS_BETWEEN_CHECKS)

    def train_epoch(self, batches: Batches, on_step: Callable[[Tensor, float], None]) -> None:
        """Train on the rest of the current epoch. After every batch `on_step(loss, seconds waited for data)` is called.

        Raises Stopped between two optimizer steps when `stop_signal` was set.
        """
        self.model.train()
        asked = time.perf_counter()
        for images, labels in batches:
            waited = time.perf_counter() - asked
            heartbeat()
            on_step(self.train_step(images, labels), waited)
            if self.step % self._steps_between_checks == 0 and self.step < self.steps_per_epoch:
                self.check_stop()
            asked = time.perf_counter()
        assert self.step == self.steps_per_epoch, f"{self.step} batches instead of {self.steps_per_epoch}"
        self.epoch, self.step = self.epoch + 1, 0
        self._statistics.synchronize()

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward on one batch, and an optimizer step after the last one of a group; the batch's loss."""
        key = seed_step(self.seed, self.epoch, self.step)
        images, targets = self.mixup(images, labels, key)
        first = self.step - self.step % self.accum_iter
        group = min(self.accum_iter, self.steps_per_epoch - first)  # batches of this optimizer step
        last = self.step + 1 == first + group
        self.lr = self.lr_at(self.epoch + first / self.steps_per_epoch)
        several = not last and hasattr(self.forward, "no_sync")  # gradients are summed once per optimizer step
        with self.forward.no_sync() if several else nullcontext():
            with self.autocast():
                loss, _ = self.objective(self.forward, images, targets)
            self.loss_scale.scaled(loss / group).backward()
        if last:
            self._update()
        self.step += 1
        return loss.detach()

    def _update(self) -> None:
        """An optimizer step; where a gradient is not finite all processes skip it."""
        self._updating = True
        gradients = [param.grad_ for param in self._trainable if param.grad_ is not None]
        skip = self.loss_scale.unscale(gradients)
        if self.grad_clip is not None:
            clip(gradients, self.grad_clip)
        set_lr(self.optimizer, self.lr, skip=skip)
        self.optimizer.step()
        self.shards.broadcast()
        for param in self._trainable:
            param.clear_gradient(set_to_zero=False)
        self.updates += 1
        if self.ema is not None:
            # No process has the float32 copies of all weights where they are sharded.
            self.ema.update(self.updates, {} if self.shards else master_weights(self.optimizer))
        self._updating = False

    def check_stop(self) -> None:
        """Raise Stopped if any process was asked to stop; to be called by all of them at the same step."""
        signum = all_reduce_max(self.stop_signal)
        if signum:
            self._statistics.synchronize()
            raise Stopped(signum)

    def roll_back(self) -> bool:
        """After an error, return to the last whole optimizer step; False where it came in the middle of one.

        Each process does so by itself. Running statistics keep what they saw of the batches that will be repeated.
        """
        self._statistics.restore_nonfinite()
        if self.step < self.steps_per_epoch:
            self.step -= self.step % self.accum_iter
        return not self._updating

    def read_skipped(self) -> int:
        """How many optimizer steps all processes have skipped since this was last asked. Waits for the device.

        Raises UserError where `max_nonfinite` were in a row.
        """
        skipped = self.loss_scale.read_skipped()
        if skipped["in_a_row"] >= self.max_nonfinite:
            raise UserError(
                f"the loss or its gradient was not finite in {skipped['in_a_row']} steps in a row "
                f"(TRAIN.MAX_NONFINITE is {self.max_nonfinite}), the last in epoch {self.epoch + 1}, step {self.step}, "
                f"at learning rate {self.lr:.3g}: lower TRAIN.BASE_LR, set TRAIN.GRAD_CLIP 1.0, or train without -amp"
            )
        if skipped["total"]:
            self._statistics.restore_nonfinite()
        else:
            self._statistics.snapshot()
        return skipped["total"]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: weights by name, the optimizer's arrays by parameter name, and the progress.

        Where the optimizer's state is sharded, all processes call this together, and the main one gets it whole.
        """
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": self.shards.gather(optimizer_arrays(self.optimizer, self.model)),
            "progress": {
                **{name: getattr(self, name) for name in _PROGRESS},
                "fixed": self.fixed,
                "loss_scale": self.loss_scale.state(),
            },
        }

    def load_state(self, optimizer: dict[str, np.ndarray], progress: dict[str, Any]) -> None:
        """Put back what `state` returned, but for the weights, which the caller has loaded into model and EMA."""
        for name, value in progress["fixed"].items():
            if progress["step"] and self.fixed[name] != value:
                raise UserError(
                    f"the checkpoint is from the middle of an epoch (step {progress['step']}) with {name} {value}, now "
                    f"it is {self.fixed[name]}: resume with {value}, or from the end of an epoch"
                )
        self._statistics.snapshot()
        load_optimizer_arrays(self.optimizer, self.model, optimizer)
        self.loss_scale.load_state(progress["loss_scale"])
        for name in _PROGRESS:
            setattr(self, name, progress[name])


@paddle.no_grad()
def evaluate(
    model: nn.Layer,
    batches: Batches,
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Callable[[Tensor], None] = lambda logits: None,
) -> dict[str, float]:
    """{"loss", "acc1", "acc5", "balanced_acc", "macro_f1", "num_images"} over the batches of all processes; every image
    counts once, and accuracies are in percent.

    `on_batch` is called with the logits of each batch of this process, in order.
    """
    total_loss = paddle.zeros([1], dtype="float64")
    top5 = paddle.zeros([1], dtype="int64")
    per_class = paddle.zeros([3, 1], dtype="int64")
    with evaluating(model):
        for images, labels in batches:
            with autocast():
                logits = model(images)
            loss, hits, counted = _counted(logits.astype("float32"), labels)
            total_loss, top5, per_class = total_loss + loss, top5 + hits, per_class + counted
            on_batch(logits)
            heartbeat()
    classes = all_reduce_max(per_class.shape[1])  # a process may have no image
    of_class, predicted, right = all_reduce_sum(per_class + paddle.zeros([3, classes], "int64")).numpy()
    total = int(of_class.sum())
    return {
        "loss": all_reduce_sum(total_loss).item() / total,
        "acc1": 100.0 * int(right.sum()) / total,
        "acc5": 100.0 * all_reduce_sum(top5).item() / total,
        **averages(of_class, predicted, right),
        "num_images": total,
    }


def _counted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch, on the device: the sum of the losses; the images whose class is among the first 5; and by class the
    images, the predictions and those that are right, [3, K]. An image whose logits are not finite is wrong.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    _, best = paddle.topk(logits, min(5, logits.shape[1]))
    known = logits.sum(axis=1, keepdim=True) < float("inf")  # not for NaN either; -inf is a class that is left out
    hits = paddle.logical_and(best == labels.unsqueeze(1), known).sum()
    of_class, predicted = (F.one_hot(each, logits.shape[1]) for each in (labels, best[:, 0]))
    predicted = predicted * known.astype(predicted.dtype)
    counts = paddle.stack([each.sum(axis=0) for each in (of_class, predicted, of_class * predicted)])
    return loss.astype("float64").sum(), hits, counts.astype("int64")
