"""What a run tells: lines of the log, metrics.jsonl, and a progress bar where a person is looking."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable

from paddle import Tensor
from tqdm import tqdm

from paddlevit.errors import UserError
from paddlevit.runtime.process import is_main, peak_memory
from paddlevit.training.metrics import StepLosses

logger = logging.getLogger(__name__)

_SCALARS = {"train": ("loss", "lr", "images_per_sec", "data_wait"), "val": ("loss", "acc1", "acc5")}


def progress(batches: Iterable, total: int, what: str) -> Iterator:
    """The batches, under a progress bar where standard error is a terminal."""
    return iter(tqdm(batches, total=total, desc=what, leave=False, disable=not _watched(), dynamic_ncols=True))


def with_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """`record` for JSON, which has no other word than null for figures that are not finite."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


class Journal:
    """Follows one training run: a line every `report_freq` steps, and one for every evaluation.

    `images_per_step` counts the images of one batch over all processes. Losses are read from the device only when a
    line is written.
    """

    def __init__(
        self, path: Path, *, report_freq: int, num_epochs: int, steps_per_epoch: int, images_per_step: int
    ) -> None:
        self.path = path
        self.report_freq = report_freq
        self.num_epochs = num_epochs
        self.steps_per_epoch = steps_per_epoch
        self.images_per_step = images_per_step
        self._losses = StepLosses()
        self._bar = tqdm(disable=True)
        self._write_scalars: Callable[[dict[str, float], int], None] | None = None

    def rewind(self, epoch: int, step: int, *, evaluated: int) -> None:
        """Forget the lines that a resumed run writes again: those after `epoch` epochs and `step` steps, and those of
        evaluations after epoch `evaluated`.
        """
        if not is_main() or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(True)
        kept = [line for line in lines if _before(line, epoch, step, evaluated)]
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text("".join(kept), encoding="utf-8")
        os.replace(part, self.path)

    def mirror(self, write_scalars: Callable[[dict[str, float], int], None]) -> None:
        """Call write_scalars(figures by tag, images seen) for every line: at once for those that are there, the ones of
        a run that goes on, and for each new one.
        """
        self._write_scalars = write_scalars
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._mirror(json.loads(line))

    def start_epoch(self, epoch: int, step: int) -> None:
        """Epoch number `epoch`, counted from 1, goes on after `step` of its steps."""
        self._epoch = epoch
        self._step = self._reported = step
        self._waited = 0.0
        self._since = time.perf_counter()
        self._bar = tqdm(
            total=self.steps_per_epoch,
            initial=step,
            desc=f"epoch {epoch}/{self.num_epochs}",
            leave=False,
            disable=not _watched(),
            dynamic_ncols=True,
        )

    def step(self, loss: Tensor, waited: float, lr: float) -> list[int] | None:
        """A batch is done: its loss, the seconds waited for its data, the learning rate.

        Where a line was written for it, the steps since the one before, counted from 0 in the epoch, whose losses are
        not finite on this process; None otherwise.
        """
        self._losses.add(loss)
        self._waited += waited
        self._step += 1
        self._bar.update()
        if self._step % self.report_freq == 0 or self._step == self.steps_per_epoch:
            return self._report(lr)
        return None

    def end_epoch(self) -> None:
        """The epoch is over, or broken off."""
        self._bar.close()

    def evaluation(self, epoch: int, weights: str, result: dict[str, float], **extra: Any) -> None:
        """An evaluation after `epoch` epochs; `weights` is "model" or "ema"."""
        self._write({"phase": "val", "epoch": epoch, "weights": weights, **result, **extra})
        logger.info(
            "epoch %d/%d  %s: top-1 %.2f %%, top-5 %.2f %%, loss %.4f on %d images%s",
            epoch,
            self.num_epochs,
            "validation" if weights == "model" else f"validation, {weights}",
            result["acc1"],
            result["acc5"],
            result["loss"],
            result["num_images"],
            " (best, from the saved file)" if extra.get("best") else "",
        )

    def _report(self, lr: float) -> list[int]:
        loss, not_finite = self._losses.read()
        steps = [self._reported + i for i in not_finite]
        seconds = time.perf_counter() - self._since
        speed = (self._step - self._reported) * self.images_per_step / seconds
        waiting, memory = self._waited / seconds, peak_memory()
        self._write(
            {
                "phase": "train",
                "epoch": self._epoch,
                "step": self._step,
                "steps_per_epoch": self.steps_per_epoch,
                "loss": loss,
                "lr": lr,
                "images_per_sec": round(speed, 1),
                "seconds": round(seconds, 3),
                "data_wait": round(waiting, 4),
                "memory_mib": memory,
            }
        )
        left = self._seconds_left(speed)
        self._bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}, {speed:.0f} images/s, run ends in {left}")
        logger.info(
            "epoch %d/%d  step %d/%d  loss %.4f  lr %.3e  %.0f images/s  waiting for data %.0f %%  %d MiB  %s left",
            self._epoch,
            self.num_epochs,
            self._step,
            self.steps_per_epoch,
            loss,
            lr,
            speed,
            100 * waiting,
            memory,
            left,
            extra={"every_step": True},
        )
        self._reported, self._waited, self._since = self._step, 0.0, time.perf_counter()
        return steps

    def _seconds_left(self, speed: float) -> str:
        steps = (self.num_epochs - self._epoch + 1) * self.steps_per_epoch - self._step
        return tqdm.format_interval(steps * self.images_per_step / speed)

    def _write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        if not is_main():
            return
        record = with_nulls(record)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; go on later by -resume auto") from error
        self._mirror(record)

    def _mirror(self, record: dict[str, Any]) -> None:
        if self._write_scalars is None or record.get("best"):  # the best weights' line repeats that of an epoch
            return
        phase, epochs = record["phase"], record["epoch"]
        if phase == "train":
            epochs += record["step"] / record["steps_per_epoch"] - 1
        group = "val_ema" if record.get("weights") == "ema" else phase
        figures = {f"{group}/{key}": record[key] for key in _SCALARS[phase] if record[key] is not None}
        self._write_scalars(figures, round(epochs * self.steps_per_epoch * self.images_per_step))


def _watched() -> bool:
    return is_main() and sys.stderr.isatty()


def _before(line: str, epoch: int, step: int, evaluated: int) -> bool:
    try:
        record = json.loads(line)
        if record["phase"] == "val":
            return record["epoch"] <= evaluated and not record.get("best")
        return (record["epoch"] - 1, record["step"]) <= (epoch, step)
    except (ValueError, KeyError):
        return False
