"""What a run measures: the lines of metrics.jsonl, one JSON object each, and scores from counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

_COUNTS = {"train": ("epoch", "step", "steps_per_epoch"), "val": ("epoch",)}  # what a line of each phase must have


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics.jsonl, and how many are damaged and left out, such as the last one of a killed run.

    Raises OSError.
    """
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    records = [record for record in map(_record, lines) if record is not None]
    return records, len(lines) - len(records)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8"))
        counts = [record[key] for key in _COUNTS[record["phase"]]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    counted = all(type(count) is int and 0 <= count < 1e9 for count in counts)
    return record if counted and record.get("steps_per_epoch") != 0 else None


def class_scores(images: np.ndarray, predicted: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class in percent, float64 [K]; 0 where there is nothing to divide by.

    Of each class: `images` that are of it, `predicted` as it, and `right`, which are both; integers [K].
    """
    return {
        "precision": 100.0 * right / np.maximum(predicted, 1),
        "recall": 100.0 * right / np.maximum(images, 1),
        "f1": 200.0 * right / np.maximum(images + predicted, 1),
    }


def averages(images: np.ndarray, predicted: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Balanced accuracy, the mean recall of the classes that have images, and macro F1, the mean F1 of those that have
    images or were predicted, in percent; counts as in `class_scores`.
    """
    scores, present, seen = class_scores(images, predicted, right), images > 0, images + predicted > 0
    return {"balanced_acc": float(scores["recall"][present].mean()), "macro_f1": float(scores["f1"][seen].mean())}


def rank(metrics: dict[str, float], by: str) -> tuple[float, float]:
    """What orders weights, the best highest: the metric `by` (TRAIN.BEST_BY), then the loss, with its sign turned."""
    loss = metrics["loss"] if math.isfinite(metrics["loss"]) else math.inf
    return -loss if by == "loss" else metrics[by], -loss


def accuracies(metrics: dict[str, float], num_classes: int, *, digits: int) -> str:
    """Top-1 and, where there are more than five classes, top-5, for the log."""
    shown = (("top-1", "acc1"), ("top-5", "acc5")) if num_classes > 5 else (("top-1", "acc1"),)
    return ", ".join(f"{name} {metrics[key]:.{digits}f} %" for name, key in shown)
