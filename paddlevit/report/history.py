"""A run's folder as a page reads it: its configuration and metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from paddlevit.config import check_whole, flat
from paddlevit.errors import MissingFileError, UserError

_AFTER_ALL_STEPS = math.inf


@dataclass(frozen=True)
class Record:
    """A line: of series "train", or the evaluation of series "model" or "ema"."""

    series: str
    epoch: float  # counted from 1
    step: float  # batches done in the epoch; inf for an evaluation, which stands after all of them
    values: dict[str, Any]

    def number(self, key: str) -> float:
        """The value of `key`; NaN where it is missing or no finite number."""
        return _number(self.values.get(key))

    def has_gap(self) -> bool:
        """Whether a value is null, NaN or infinite."""
        return any(value is None or value in (math.inf, -math.inf) or value != value for value in self.values.values())


@dataclass(frozen=True)
class History:
    """A run's lines by series, in order, without those that a resumed run wrote again."""

    series: dict[str, list[Record]]
    last_epoch: float  # of the last line
    closing: Record | None  # the saved best weights, evaluated once more at the end of a finished run
    unread: int  # lines that could not be read

    @cached_property
    def _longest_epoch(self) -> float:
        return max((record.step for record in self.series["train"]), default=1.0)

    def points(self, series: str, key: str) -> list[tuple[float, float]]:
        """(epochs done, value of `key`) of a series; the value is NaN where the line has none."""
        return [(self._epochs_done(record), record.number(key)) for record in self.series[series]]

    def epoch_range(self) -> tuple[int, int]:
        """The first and the last whole number of epochs done that a curve reaches."""
        places = [self._epochs_done(record) for record in self.records()] or [self.last_epoch]
        low, high = math.floor(min(places)), math.ceil(max(places))
        return (low, high) if low < high else (high - 1, high)

    def best(self) -> Record | None:
        """The evaluation of the saved best weights or, in a run that has not finished, the best one so far."""
        if self.closing is not None:
            return self.closing
        evaluated = [record for record in self.records() if not math.isnan(record.number("acc1"))]
        return max(evaluated, key=lambda record: record.number("acc1"), default=None)

    def numbers(self, key: str) -> list[float]:
        """The finite values of `key` in the training lines."""
        return [y for _, y in self.points("train", key) if not math.isnan(y)]

    def records(self) -> Iterator[Record]:
        """The lines of all series."""
        return chain.from_iterable(self.series.values())

    def _epochs_done(self, record: Record) -> float:
        if math.isinf(record.step):
            return record.epoch
        steps = record.number("steps_per_epoch")
        steps = self._longest_epoch if math.isnan(steps) else steps
        return record.epoch - 1 + min(record.step / max(steps, 1.0), 1.0)


def read_history(path: Path) -> History:
    """The run that `path`, a metrics.jsonl, describes.

    A line takes the place of the one of its series that it repeats, and of all after that: a resumed run writes those
    again. Lines that cannot be read, such as the last one of a killed run, are counted. Raises UserError where the file
    is missing or holds no readable line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: a report needs the metrics of a run") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    read = [_read(line) for line in lines if line.strip()]
    records = [record for record in read if record is not None]
    unread = len(read) - len(records)
    if not records:
        what = f"none of its {unread} lines can be read" if unread else "it is empty"
        raise UserError(f"{path} holds no metrics of a run: {what}")
    closing = records[-1] if records[-1].values.get("best") else None
    series: dict[str, list[Record]] = {"train": [], "model": [], "ema": []}
    for record in records:
        if not record.values.get("best"):
            kept = series[record.series]
            while kept and (kept[-1].epoch, kept[-1].step) >= (record.epoch, record.step):
                kept.pop()
            kept.append(record)
    return History(series, records[-1].epoch, closing, unread)


def _read(line: bytes) -> Record | None:
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("phase") not in ("train", "val"):
        return None
    epoch = _number(values.get("epoch"))
    if math.isnan(epoch):
        return None
    if values["phase"] == "val":
        return Record("ema" if values.get("weights") == "ema" else "model", epoch, _AFTER_ALL_STEPS, values)
    step = _number(values.get("step"))
    return Record("train", epoch, 1.0 if math.isnan(step) else step, values)


def _number(value: Any) -> float:
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
    history: History
    changed: float  # when metrics.jsonl was, in seconds since 1970

    @property
    def model(self) -> str:
        """The variant's name, or the folder's where the configuration has none."""
        return str(self.value("MODEL.NAME", "") or self.folder.resolve().name)

    def value(self, key: str, default: Any) -> Any:
        """The value of a dotted key of the configuration; `default` where it is missing or null."""
        value = self.config.get(key)
        return default if value is None else value


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises UserError where its metrics.jsonl or config.yaml is missing, empty or not what its name says.
    """
    metrics = folder / "metrics.jsonl"
    history = read_history(metrics)
    text, config = _read_config(folder / "config.yaml")
    return Run(folder, text, config, history, metrics.stat().st_mtime)


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        check_whole(text, path)
        config = yaml.safe_load(text)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist: a report needs the configuration of the run") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a yaml file: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no keys")
    return text, dict(flat(config))
