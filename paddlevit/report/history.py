"""A run's folder as a page reads it: its configuration and metrics.jsonl."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from paddlevit.config import read_dumped
from paddlevit.errors import UserError
from paddlevit.metrics import read_metrics


@dataclass(frozen=True)
class Record:
    """A line: of series "train", or the evaluation of series "model" or "ema"."""

    series: str
    epoch: int  # counted from 1
    epochs_done: float
    values: dict[str, Any]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Record:
        """The record of a line as `read_metrics` has it."""
        epoch = values["epoch"]
        if values["phase"] == "val":
            return cls("ema" if values.get("weights") == "ema" else "model", epoch, epoch, values)
        return cls("train", epoch, epoch - 1 + min(values["step"] / values["steps_per_epoch"], 1.0), values)

    def number(self, key: str) -> float:
        """The value of `key`; NaN where it is missing or no finite number."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return math.nan
        # What is larger than any metric would only flatten the rest of its curve.
        return float(value) if abs(value) < 1e30 else math.nan


@dataclass(frozen=True)
class Run:
    """What a run has written about itself."""

    folder: Path
    text: str  # of config.yaml
    config: dict[str, Any]  # by dotted key
    series: dict[str, list[Record]]  # in order, without the lines that a resumed run wrote again
    last_epoch: int  # of the last line
    closing: Record | None  # the saved best weights, evaluated once more at the end of a finished run
    unread: int  # lines that could not be read
    changed: float  # when metrics.jsonl was, in seconds since 1970

    @property
    def model(self) -> str:
        """The variant's name, or the folder's where the configuration has none."""
        return str(self.value("MODEL.NAME", "") or self.folder.resolve().name)

    def value(self, key: str, default: Any) -> Any:
        """The value of a dotted key of the configuration; `default` where it is missing or null."""
        value = self.config.get(key)
        return default if value is None else value

    def records(self) -> Iterator[Record]:
        """The lines of all series."""
        return chain.from_iterable(self.series.values())

    def points(self, series: str, key: str) -> list[tuple[float, float]]:
        """(epochs done, value of `key`) of a series; the value is NaN where the line has none."""
        return [(record.epochs_done, record.number(key)) for record in self.series[series]]

    def numbers(self, series: str, key: str) -> list[float]:
        """The finite values of `key` in a series; a NaN where there is none."""
        return [y for _, y in self.points(series, key) if not math.isnan(y)] or [math.nan]

    def epoch_range(self) -> tuple[int, int]:
        """The first and the last whole number of epochs done that a curve reaches."""
        places = [record.epochs_done for record in self.records()] or [self.last_epoch]
        low, high = math.floor(min(places)), math.ceil(max(places))
        return (low, high) if low < high else (high - 1, high)

    def best(self) -> Record | None:
        """The evaluation of the saved best weights or, in a run that has not finished, the best one so far."""
        if self.closing is not None:
            return self.closing
        evaluated = [record for record in self.records() if not math.isnan(record.number("acc1"))]
        return max(evaluated, key=lambda record: record.number("acc1"), default=None)

    def training(self) -> tuple[float, float, float]:
        """The last loss, the median of the images per second, and all seconds of the training lines; NaN for none."""
        loss, speed, seconds = (self.numbers("train", key) for key in ("loss", "images_per_sec", "seconds"))
        return loss[-1], statistics.median(speed), sum(seconds)


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    A line takes the place of the one of its series that it repeats, and of all after that: a resumed run writes those
    again. Raises UserError where metrics.jsonl or config.yaml is missing, empty or not what its name says.
    """
    path = folder / "metrics.jsonl"
    try:
        lines, unread = read_metrics(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: a report needs the metrics of a run") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    records = [Record.of(line) for line in lines]
    if not records:
        what = f"none of its {unread} lines can be read" if unread else "it is empty"
        raise UserError(f"{path} holds no metrics of a run: {what}")
    closing = records[-1] if records[-1].values.get("best") else None
    series: dict[str, list[Record]] = {"train": [], "model": [], "ema": []}
    for record in records:
        if not record.values.get("best"):
            kept = series[record.series]
            while kept and kept[-1].epochs_done >= record.epochs_done:
                kept.pop()
            kept.append(record)
    config = read_dumped(folder / "config.yaml")
    text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    return Run(folder, text, config, series, records[-1].epoch, closing, unread, path.stat().st_mtime)
