"""The progress of a run: lines of the log and of metrics.jsonl, curves, and a progress bar in a terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor
from tqdm import tqdm

from paddlevit.errors import UserError
from paddlevit.metrics import accuracies, read_metrics
from paddlevit.runtime.files import write_text
from paddlevit.runtime.process import all_reduce_sum, is_main, peak_memory, world_size

logger = logging.getLogger(__name__)

_CURVES = {"train": ("loss", "lr", "images_per_sec", "data_wait"), "val": ("loss", "acc1", "acc5")}
_PACKAGES = {"tensorboard": "tensorboardX", "visualdl": "visualdl"}


def progress(batches: Iterable, total: int, what: str, *, done: int = 0) -> tqdm:
    """The batches, under a progress bar where standard error is a terminal."""
    watched = is_main() and sys.stderr.isatty()
    return tqdm(batches, total=total, desc=what, initial=done, leave=False, disable=not watched, dynamic_ncols=True)


def with_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """`record` for JSON, where numbers that are not finite are null."""
    odd = [key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    return {**record, **dict.fromkeys(odd)}


@dataclass
class Journal:
    """Follows one training run: a line every `report_freq` steps, and one for every evaluation.

    Losses are read from the device only when a line is written.
    """

    path: Path
    report_freq: int
    num_epochs: int
    steps_per_epoch: int
    images_per_batch: int  # over all processes
    num_classes: int = 1000
    write_curves: Callable[[dict[str, float], int], None] | None = None  # (values by tag, images seen)
    fingerprint: Callable[[], str] | None = None  # of the weights, for the first line of an epoch

    def __post_init__(self) -> None:
        self._losses: list[Tensor] = []  # since the last line

    def rewind(self, epoch: int, step: int, *, evaluated: int) -> None:
        """Drop the lines that a resumed run writes again: those after `epoch` epochs and `step` steps, and those of
        evaluations after epoch `evaluated`. Those that stay are drawn again.
        """
        if not is_main() or not self.path.is_file():
            return
        records, damaged = read_metrics(self.path)
        if damaged:
            logger.warning("%s: dropped %d damaged lines", self.path, damaged)
        kept = [record for record in records if _before(record, epoch, step, evaluated)]
        write_text(self.path, "".join(f"{json.dumps(record)}\n" for record in kept))
        for record in kept:
            self._draw(record)

    def start_epoch(self, epoch: int, step: int) -> None:
        """Epoch number `epoch`, counted from 1, continues after `step` of its steps."""
        self._epoch = epoch
        self._step = self._reported = step
        self._waited = 0.0
        self._since = time.perf_counter()

    def step(self, loss: Tensor, waited: float, lr: float) -> list[int] | None:
        """A batch is done: its loss, the seconds waited for its data, the learning rate.

        Returns None, or, where a line was written, the steps since the line before whose losses are not finite on this
        process, counted from 0 in the epoch.
        """
        self._losses.append(loss.detach().astype("float32").reshape([1]))
        self._waited += waited
        self._step += 1
        if self._step % self.report_freq == 0 or self._step == self.steps_per_epoch:
            return self._report(lr)
        return None

    def evaluation(self, epoch: int, weights: str, result: dict[str, float], **extra: Any) -> None:
        """An evaluation after `epoch` epochs; `weights` is "model" or "ema"."""
        self._write({"phase": "val", "epoch": epoch, "weights": weights, **result, **extra})
        what = "validation" if weights == "model" else f"validation, {weights}"
        scores = accuracies(result, self.num_classes, digits=2)
        best = " (best, from the saved file)" if extra.get("best") else ""
        found = f"{what}: {scores}, loss {result['loss']:.4f} on {result['num_images']} images{best}"
        logger.info("epoch %d/%d  %s", epoch, self.num_epochs, found)

    def _report(self, lr: float) -> list[int]:
        loss, not_finite = self._read_losses()
        steps, seconds = self._step - self._reported, time.perf_counter() - self._since
        speed, waiting, memory = steps * self.images_per_batch / seconds, self._waited / seconds, peak_memory()
        record = {"phase": "train", "epoch": self._epoch, "step": self._step, "steps_per_epoch": self.steps_per_epoch}
        record |= {
            "loss": loss,
            "steps": steps,
            "lr": lr,
            "images_per_sec": round(speed, 1),
            "seconds": round(seconds, 3),
        }
        if self.fingerprint and self._reported == 0 and is_main():
            record["weights_sha256"] = self.fingerprint()
        self._write({**record, "data_wait": round(waiting, 4), "memory_mib": memory})
        steps_left = (self.num_epochs - self._epoch + 1) * self.steps_per_epoch - self._step
        left = tqdm.format_interval(steps_left * self.images_per_batch / speed)
        logger.info(
            f"epoch {self._epoch}/{self.num_epochs}  step {self._step}/{self.steps_per_epoch}  loss {loss:.4f}  "
            f"lr {lr:.3e}  {speed:.0f} images/s  {left} left  waiting for data {100 * waiting:.0f} %  {memory} MiB"
        )
        first, self._reported, self._waited, self._since = self._reported, self._step, 0.0, time.perf_counter()
        return [first + i for i in not_finite]

    def _read_losses(self) -> tuple[float, list[int]]:
        """The mean of the finite losses of all processes, which read at the same time (NaN without any), and which of
        the steps since the last line have a loss on this process that is not finite.
        """
        mine = paddle.concat(self._losses)
        self._losses = []
        not_finite = np.flatnonzero(~np.isfinite(mine.numpy())).tolist()
        losses = all_reduce_sum(mine).numpy() / world_size()
        finite = losses[np.isfinite(losses)]
        return (float(finite.mean()) if len(finite) else math.nan), not_finite

    def _write(self, record: dict[str, Any]) -> None:
        if not is_main():
            return
        record = with_nulls(record)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; resume later with -resume auto") from error
        self._draw(record)

    def _draw(self, record: dict[str, Any]) -> None:
        if self.write_curves is None or record.get("best"):  # the best weights' line repeats that of an epoch
            return
        phase, epochs = record["phase"], record["epoch"]
        if phase == "train":
            epochs += record["step"] / record["steps_per_epoch"] - 1
        group = "val_ema" if record.get("weights") == "ema" else phase
        values = {f"{group}/{key}": record[key] for key in _CURVES[phase] if record.get(key) is not None}
        self.write_curves(values, round(epochs * self.steps_per_epoch * self.images_per_batch))


def _before(record: dict[str, Any], epoch: int, step: int, evaluated: int) -> bool:
    if record["phase"] == "val":
        return record["epoch"] <= evaluated and not record.get("best")
    return (record["epoch"] - 1, record["step"]) <= (epoch, step)


def open_scalars(kind: str, folder: Path) -> Callable[[dict[str, float], int], None]:
    """write(values by tag, step), for TensorBoard or VisualDL, into a new file in `folder`/tensorboard or /visualdl.

    Points in earlier files no longer count: the journal of a resumed run writes them again. Raises UserError where the
    package is missing or the folder cannot be written.
    """
    try:
        if kind == "tensorboard":
            from tensorboardX import SummaryWriter

            # Step 0 withdraws all earlier points; a TensorBoard that is running would not notice that files are gone. A
            # queue without an end: where the disk is full nobody empties it, and training would wait for that.
            writer = SummaryWriter(str(folder / kind), purge_step=0, max_queue=0, flush_secs=10)
        else:
            from visualdl import LogWriter

            for file in (folder / kind).glob("vdlrecords.*"):  # it has no other way to withdraw points
                file.unlink()
            writer = LogWriter(str(folder / kind))
    except ImportError as error:
        raise UserError(f"LOG_TO is {kind}, but: {error} (pip install {_PACKAGES[kind]})") from None
    except OSError as error:
        raise UserError(f"cannot write {folder / kind}: {error.strerror}") from None
    logger.info("curves: %s --logdir %s", kind, folder)

    def write(values: dict[str, float], step: int) -> None:
        with contextlib.suppress(OSError):  # a full disk costs curves, no run
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            if kind == "visualdl":
                writer.flush()  # at the end of the program nobody else does

    return write
