"""Precision, recall and F1 of each class, from counts; and how weights are ranked by metrics."""

from __future__ import annotations

import math

import numpy as np


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
