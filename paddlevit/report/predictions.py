"""What the best weights predicted for every validation image: confusions, classes, worst mistakes."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
from PIL import Image

from paddlevit.calibration import Calibration

logger = logging.getLogger(__name__)

_MOST_CLASSES_IN_MATRIX = 50
_MOST_CONFUSIONS = _MOST_CLASSES_OPEN = 30
_MOST_MISTAKES = 12  # and right answers
_MOST_CLASSES_WIDE = 24  # above that the cells of the matrix are small
_SHORT_NAME = 4  # characters that fit upright above a column of the matrix
_TINY = 64  # pixels; smaller pictures are shown with sharp edges
_HEAT_LEVELS = 9  # as in style.css


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions of N images, in any order.

    Classes that `class_names` does not reach are called by their number.
    """

    labels: np.ndarray  # int64 [N]
    predicted: np.ndarray  # int64 [N]
    confidence: np.ndarray  # float32 [N], probability of the predicted class
    scores: Mapping[str, np.ndarray]  # "precision" and "f1" of each class in percent, float [K]
    class_names: Sequence[str]
    names: Callable[[int], str]  # file name of the i-th image
    thumbnail: Callable[[int], bytes]  # the i-th image as JPEG or PNG; called for the shown ones only
    calibration: Calibration = Calibration()  # of `confidence`
    uncalibrated: np.ndarray | None = None  # float32 [N], `confidence` at temperature 1

    def __post_init__(self) -> None:
        assert self.labels.shape == self.predicted.shape == self.confidence.shape
        assert min(self.labels.min(initial=0), self.predicted.min(initial=0)) >= 0

    @property
    def num_classes(self) -> int:
        """The classes that have a name, a label or a prediction."""
        return int(max(len(self.class_names), self.labels.max(initial=0) + 1, self.predicted.max(initial=0) + 1))

    def class_name(self, label: int) -> str:
        """Name of class number `label`."""
        return str(self.class_names[label]) if label < len(self.class_names) else str(label)

    def confusions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True class, predicted class and number of images, each int64 [M], of the M pairs that occur."""
        # All pairs of 22,000 classes would not fit into memory; those that occur do.
        pairs, counts = np.unique(self.labels.astype("int64") * self.num_classes + self.predicted, return_counts=True)
        return pairs // self.num_classes, pairs % self.num_classes, counts

    def worst_mistakes(self) -> list[int]:
        """Indices of the wrong predictions with the highest confidence, highest first."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        confidence = np.nan_to_num(self.confidence[wrong], nan=-1.0)
        return [int(i) for i in wrong[np.argsort(-confidence, kind="stable")][:_MOST_MISTAKES]]

    def right_answers(self) -> list[int]:
        """Indices of right predictions, one for each class that has any, those with the lowest confidence first."""
        right = np.flatnonzero(self.labels == self.predicted)
        right = right[np.argsort(self.confidence[right], kind="stable")]
        _, first = np.unique(self.labels[right], return_index=True)
        return [int(i) for i in right[np.sort(first)][:_MOST_MISTAKES]]


def shown_predictions(predictions: Predictions) -> dict[str, Any]:
    """What templates/predictions.html shows."""
    num_classes, total = predictions.num_classes, len(predictions.labels)
    images = np.bincount(predictions.labels, minlength=num_classes)
    right = np.bincount(predictions.labels[predictions.labels == predictions.predicted], minlength=num_classes)
    small = num_classes <= _MOST_CLASSES_IN_MATRIX
    return {
        "total": total,
        "right": int(right.sum()),
        "matrix": _matrix(predictions) if small else None,
        "confusions": [] if small else _frequent_confusions(predictions, images),
        "classes": _classes(predictions, right, images),
        "open_classes": _MOST_CLASSES_OPEN,
        "absent": int((images == 0).sum()),
        "mistakes": [_answer(predictions, i) for i in predictions.worst_mistakes()],
        "answers": [_answer(predictions, i) for i in predictions.right_answers()],
    }


def _matrix(predictions: Predictions) -> dict[str, Any]:
    """Names of the classes, and by true and predicted class the images and their share as a level of heat."""
    size = predictions.num_classes
    counts = np.zeros((size, size), dtype="int64")
    true, predicted, count = predictions.confusions()
    counts[true, predicted] = count
    names = [predictions.class_name(i) for i in range(size)]
    kind = " upright" if max(map(len, names)) <= _SHORT_NAME else ""
    kind += " small" if size > _MOST_CLASSES_WIDE else ""
    # The root makes single mistakes visible beside a nearly perfect diagonal.
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    heat = np.ceil(_HEAT_LEVELS * share**0.5).astype("int64")
    cells = [list(zip(*row)) for row in zip(counts.tolist(), heat.tolist())]
    return {"names": names, "kind": kind, "cells": cells}


def _frequent_confusions(predictions: Predictions, images: np.ndarray) -> list[tuple[str, str, str, str]]:
    name = predictions.class_name
    pairs = [pair for pair in zip(*predictions.confusions()) if pair[0] != pair[1]]
    pairs.sort(key=lambda pair: -pair[2])
    return [
        (name(true), name(predicted), f"{count:,}", f"{100 * count / images[true]:.1f}")
        for true, predicted, count in pairs[:_MOST_CONFUSIONS]
    ]


def _classes(predictions: Predictions, right: np.ndarray, images: np.ndarray) -> list[dict[str, str]]:
    """The classes that have images, the least accurate first."""
    present = np.flatnonzero(images)
    accuracy = right[present] / images[present]
    order = present[np.lexsort((present, -images[present], accuracy))]
    return [
        {
            "name": predictions.class_name(i),
            "share": f"{100 * right[i] / images[i]:.1f}",
            "precision": f"{predictions.scores['precision'][i]:.1f}",
            "f1": f"{predictions.scores['f1'][i]:.1f}",
            "right": f"{right[i]:,}",
            "images": f"{images[i]:,}",
        }
        for i in order
    ]


def _answer(predictions: Predictions, index: int) -> dict[str, Any]:
    confidence, name = float(predictions.confidence[index]), predictions.names(index)
    return {
        "picture": shown_picture(lambda: predictions.thumbnail(index), name),
        "taken": predictions.class_name(predictions.predicted[index]),
        "true": predictions.class_name(predictions.labels[index]),
        "confidence": "" if np.isnan(confidence) else f"{100 * confidence:.1f}",
        "file": name,
    }


def shown_picture(read: Callable[[], bytes], name: str) -> tuple[str, bool]:
    """`data_address` of the file that `read` returns; where there is none "", False, and a warning."""
    try:
        return data_address(read())
    except (OSError, ValueError) as error:  # no reason to lose the report of a long run
        logger.warning("report: no picture of %s: %s", name, error)
        return "", False


def data_address(data: bytes) -> tuple[str, bool]:
    """The address that holds a PNG or JPEG file, and whether it is tiny. Raises OSError or ValueError."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        mime, size = Image.MIME[str(image.format)], max(image.size)
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}", size <= _TINY
