"""A model and its exported form on the same images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

import numpy as np
import paddle

from paddlevit.classifier import Classifier
from paddlevit.config import with_values
from paddlevit.data import build_eval_loader
from paddlevit.data.sources import find_images
from paddlevit.errors import UserError
from paddlevit.export.read import Exported
from paddlevit.training.journal import progress

_BATCH_SIZE = 32
_RANDOM_BATCHES = (2, 1, 3)
# The largest difference, as a part of the largest logit, that the precision explains; int8 depends on the model.
_TOLERANCE = {"f32": 1e-4, "bf16": 0.05}

Batch = tuple[np.ndarray, Optional[np.ndarray]]  # images, and labels where there are some


class Comparison(NamedTuple):
    """Of a model and its exported form on the same images."""

    precision: str
    num_images: int
    difference: float
    largest: float  # logit
    agreeing: int  # images with the same top-1
    accuracy: tuple[float, ...] | None  # in percent, of the model and of its exported form

    def __str__(self) -> str:
        lines = [
            f"largest difference {self.difference:.2e} (of logits up to {self.largest:.2f}), in {self.precision}; "
            f"top-1 equal on {self.agreeing} of {self.num_images} images"
        ]
        if self.difference > _TOLERANCE.get(self.precision, np.inf) * self.largest:
            lines.append(f"warning: that is more than rounding to {self.precision} explains")
        if self.accuracy:
            lines.append("top-1 accuracy: model {:.2f} %, exported {:.2f} %".format(*self.accuracy))
        return "\n".join(lines)


def compare(classifier: Classifier, exported: Sequence[Exported], batches: Iterable[Batch]) -> list[Comparison]:
    """The model and each of `exported` on the same images; accuracies where all have labels. Raises UserError for
    logits that are not finite.
    """
    ours, labels = [], []
    theirs: list[list[np.ndarray]] = [[] for _ in exported]
    for images, truth in batches:
        ours.append(classifier.forward(paddle.to_tensor(images)))
        labels.append(np.full(len(images), -1) if truth is None else truth)
        for each, logits in zip(exported, theirs):
            logits.append(each(images))
    model, right = np.concatenate(ours), np.concatenate(labels)
    return [_compared(e.precision, model, np.concatenate(logits), right) for e, logits in zip(exported, theirs)]


def _compared(precision: str, model: np.ndarray, other: np.ndarray, right: np.ndarray) -> Comparison:
    for name, logits in (("the model", model), ("the exported model", other)):
        if not np.isfinite(logits).all():
            raise UserError(f"{name} gives logits that are not finite: nothing is written")
    top1, other_top1 = model.argmax(1), other.argmax(1)
    accuracy = None if right.min() < 0 else tuple(100 * float((found == right).mean()) for found in (top1, other_top1))
    return Comparison(
        precision=precision,
        num_images=len(model),
        difference=float(np.abs(model - other).max()),
        largest=float(np.abs(model).max()),
        agreeing=int((top1 == other_top1).sum()),
        accuracy=accuracy,
    )


def calibration_images(classifier: Classifier, args: argparse.Namespace) -> list[np.ndarray]:
    """Images one by one, since ranges are those of batches."""
    batches = _of_files(classifier, args) if args.images else _of_data(classifier, "train", args.num_images)
    return [image[None] for images, _ in batches for image in images]


def comparison_images(classifier: Classifier, args: argparse.Namespace) -> tuple[Iterable[Batch], str]:
    """What to compare on, and what that is in words."""
    data = classifier.config.DATA
    if args.images and args.precision != "auto":  # which needs labels: they are for the ranges of int8
        return _of_files(classifier, args), "the named images"
    if args.data_path:
        return _of_data(classifier, "val", args.num_images), f"validation images of {data.DATA_PATH}"
    shape, generator = [data.IMAGE_CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE], np.random.default_rng(0)
    batches = [(generator.standard_normal([n, *shape], dtype="float32"), None) for n in _RANDOM_BATCHES]
    return batches, "random numbers (-data_path and -images are for real images)"


def _of_data(classifier: Classifier, split: str, most: int) -> Iterable[Batch]:
    config = with_values(classifier.config, {"DATA.BATCH_SIZE_EVAL": _BATCH_SIZE})
    loader = build_eval_loader(config, split, classes=classifier.classes, most=most)
    for images, labels in progress(loader, len(loader), "images"):
        yield images.numpy(), labels.numpy()


def _of_files(classifier: Classifier, args: argparse.Namespace) -> Iterable[Batch]:
    paths = list(find_images(args.images))[: args.num_images]
    for i in progress(range(0, len(paths), _BATCH_SIZE), -(-len(paths) // _BATCH_SIZE), "images"):
        pixels = np.stack([classifier.pixels(path) for path in paths[i : i + _BATCH_SIZE]])
        yield classifier.normalize(pixels).numpy(), None
