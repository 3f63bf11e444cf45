"""The training loop and exact evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlevit.errors import UserError
from paddlevit.paddle_internals import master_weights
from paddlevit.runtime.launcher import heartbeat
from paddlevit.runtime.process import all_reduce_max, rank, world_size
from paddlevit.training.ema import ModelEma
from paddlevit.training.gradients import LossScale, clip
from paddlevit.training.metrics import EvalTotals
from paddlevit.training.objectives import Objective
from paddlevit.training.optim import load_optimizer_arrays, optimizer_arrays, set_lr
from paddlevit.training.running_statistics import RunningStatistics
from paddlevit.training.sharding import Shards

Batches = Iterable[tuple[Tensor, Tensor]]


class Stopped(Exception):  # noqa: N818 - no error
    """Training was asked to stop by the signal `signum`; the trainer stands between two optimizer steps."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


@dataclass
class Trainer:
    """Everything that takes part in training, and all that a resumed run must restore.

    Randomness is drawn from (seed, epoch, step, rank), so no generator's state needs saving: a resumed run goes on with
    the numbers that an undisturbed one would have drawn.
    """

    model: nn.Layer
    objective: Objective
    mixup: Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]
    optimizer: paddle.optimizer.Optimizer
    lr_at: Callable[[float], float]
    steps_per_epoch: int
    accum_iter: int = 1
    seed: int = 0
    ema: ModelEma | None = None
    network: Callable | None = None  # what the objective calls: the model, its program, or what synchronises ranks
    grad_clip: float | None = None  # largest global norm of the gradient
    shards: Shards | None = None  # where every process keeps a part of the optimizer's state only
    loss_scale: LossScale = field(default_factory=LossScale)
    max_nonfinite: int = 10  # optimizer steps in a row that may be left out
    autocast: Callable[[], AbstractContextManager] = nullcontext
    stop_signal: int = 0

    epoch: int = 0  # epochs done
    step: int = 0  # batches done in the current epoch
    updates: int = 0  # optimizer steps done
    to_evaluate: bool = False  # whether the epoch that was done last has still to be evaluated
    best: dict[str, Any] = field(default_factory=dict)  # what is known of the best weights
    lr: float = 0.0  # of the last optimizer step

    def __post_init__(self) -> None:
        self.network = self._network = self.network or self.model
        self._trainable = [param for param in self.model.parameters() if not param.stop_gradient]
        networks = [self.model] if self.ema is None else [self.model, self.ema.model]
        self._statistics = [RunningStatistics(network) for network in networks]

    def train_epoch(self, batches: Batches, on_step: Callable[[Tensor, float], None]) -> None:
        """Train on the rest of the current epoch. After every batch `on_step(loss, seconds waited for data)` is called.

        Raises Stopped between two optimizer steps when `stop_signal` was set.
        """
        self.model.train()
        for images, labels, waited in _timed(batches):
            heartbeat()
            on_step(self.train_step(images, labels), waited)
            if self.step % self._steps_between_checks == 0 and self.step < self.steps_per_epoch:
                self.check_stop()
        assert self.step == self.steps_per_epoch, f"{self.step} batches instead of {self.steps_per_epoch}"
        self.epoch, self.step = self.epoch + 1, 0
        self._average_statistics()

    def check_stop(self) -> None:
        """Raise Stopped if any process was asked to stop; to be called by all of them at the same step."""
        signum = all_reduce_max(self.stop_signal)
        if signum:
            self._average_statistics()
            raise Stopped(signum)

    def _average_statistics(self) -> None:
        for statistics in self._statistics:
            statistics.mend()  # a step since the last line of the log may have spoilt them
            statistics.average()

    @property
    def _steps_between_checks(self) -> int:
        """Optimizer steps are whole there; alone, asking costs nothing, and together it makes the device wait."""
        return self.accum_iter if world_size() == 1 else self.accum_iter * 16

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One batch forward and backward, and an optimizer step where it completes one; returns the batch's loss."""
        key = (self.seed, self.epoch, self.step, rank())
        paddle.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        images, targets = self.mixup(images, labels, key)
        first = self.step - self.step % self.accum_iter
        batches = min(self.accum_iter, self.steps_per_epoch - first)
        completes = self.step - first + 1 == batches
        with nullcontext() if completes else self._no_sync():
            with self.autocast():
                loss, _ = self.objective(self._network, images, targets)
            self.loss_scale.scaled(loss / batches).backward()
        if completes:
            self._update(first)
        self.step += 1
        return loss.detach()

    def _update(self, step: int) -> None:
        """An optimizer step, or none, on all processes alike, where a gradient is not finite."""
        self.lr = self.lr_at(self.epoch + step / self.steps_per_epoch)
        gradients = [param.grad_ for param in self._trainable if param.grad_ is not None]
        skip = self.loss_scale.unscale(gradients)
        if self.grad_clip is not None:
            clip(gradients, self.grad_clip)
        set_lr(self.optimizer, self.lr, skip=skip)
        self.optimizer.step()
        if self.shards is not None:
            self.shards.share()
        for param in self._trainable:
            param.clear_gradient(set_to_zero=False)
        self.updates += 1
        if self.ema is not None:
            # Where the optimizer is shared out, no process has the float32 copies of all.
            self.ema.update(self.updates, master_weights(self.optimizer) if self.shards is None else None)

    def read_skipped(self) -> int:
        """Optimizer steps that were left out since this was last asked, by all processes alike. Waits for the device.

        Raises UserError where `max_nonfinite` were in a row.
        """
        skipped = self.loss_scale.read_skipped()
        if skipped["in_a_row"] >= self.max_nonfinite:
            raise UserError(
                f"the loss or its gradient was not finite in {skipped['in_a_row']} steps in a row "
                f"(TRAIN.MAX_NONFINITE is {self.max_nonfinite}), the last in epoch {self.epoch + 1}, step {self.step}, "
                f"at learning rate {self.lr:.3g}: lower TRAIN.BASE_LR, set TRAIN.GRAD_CLIP 1.0, or train without -amp"
            )
        for statistics in self._statistics:
            statistics.mend() if skipped["total"] else statistics.remember()
        return skipped["total"]

    def _no_sync(self) -> AbstractContextManager:
        return self._network.no_sync() if hasattr(self._network, "no_sync") else nullcontext()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: weights by name, the optimizer's arrays by parameter name, and the progress.

        Where the optimizer's state is shared out, all processes ask for it together, and the main one gets it whole.
        """
        arrays = optimizer_arrays(self.optimizer, self.model)
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": arrays if self.shards is None else self.shards.gather(arrays),
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "updates": self.updates,
                "to_evaluate": self.to_evaluate,
                "steps_per_epoch": self.steps_per_epoch,
                "accum_iter": self.accum_iter,
                "best": self.best,
                "loss_scale": self.loss_scale.state(),
            },
        }

    def load_state(self, optimizer: dict[str, np.ndarray], progress: dict[str, Any]) -> None:
        """Put back what `state` returned, apart from the weights, which the caller has loaded into model and EMA."""
        if progress["step"] and progress["steps_per_epoch"] != self.steps_per_epoch:
            raise UserError(
                f"the checkpoint stands at step {progress['step']} of {progress['steps_per_epoch']}, and now an epoch "
                f"has {self.steps_per_epoch} steps: go on with the same global batch, or from the end of an epoch"
            )
        if progress["step"] and progress["accum_iter"] != self.accum_iter:
            raise UserError(
                f"the checkpoint stands in the middle of an epoch with TRAIN.ACCUM_ITER {progress['accum_iter']}, and "
                f"now it is {self.accum_iter}: go on with the same, or from the end of an epoch"
            )
        for statistics in self._statistics:
            statistics.remember()
        load_optimizer_arrays(self.optimizer, self.model, optimizer)
        self.epoch, self.step, self.updates = progress["epoch"], progress["step"], progress["updates"]
        self.best, self.to_evaluate = progress["best"], progress.get("to_evaluate", False)
        self.loss_scale.load_state(progress["loss_scale"])


@paddle.no_grad()
def evaluate(
    model: nn.Layer,
    batches: Batches,
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Callable[[Tensor], None] = lambda logits: None,
) -> dict[str, float]:
    """{"loss", "acc1", "acc5", "num_images"} over the batches of all processes; every image counts once.

    `on_batch` is called with the logits of each batch of this process, in order.
    """
    was_training = model.training
    model.eval()
    totals = EvalTotals()
    for images, labels in batches:
        with autocast():
            logits = model(images)
        totals.add(logits, labels)
        on_batch(logits)
        heartbeat()
    if was_training:
        model.train()
    return totals.result()


def _timed(batches: Batches) -> Iterator[tuple[Tensor, Tensor, float]]:
    """The batches, each with the seconds that were spent waiting for it."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        yield (*batch, time.perf_counter() - start)
