"""A network and its exported form on the same images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

import numpy as np
import paddle
from paddle import nn
from yacs.config import CfgNode

from paddlevit.commands.classifier import build_logits
from paddlevit.data import EvalLoader, build_file_loader, build_sample_loader
from paddlevit.data.files import UNREADABLE, find_images
from paddlevit.export import Predict
from paddlevit.training.journal import progress

RANDOM_BATCHES = (2, 1, 3)
BATCH_SIZE = 32
Batch = tuple[np.ndarray, Optional[np.ndarray]]  # images, and labels where there are some


class Comparison(NamedTuple):
    """Of a network and its exported form on the same images."""

    num_images: int
    difference: float
    largest: float  # logit
    agreeing: int  # images whose likeliest class is the same
    accuracy: tuple[float, float] | None  # in percent, of the network and of its exported form

    def __str__(self) -> str:
        lines = [
            f"largest difference {self.difference:.2e} (of logits up to {self.largest:.2f}); "
            f"top-1 equal on {self.agreeing} of {self.num_images} images"
        ]
        if self.accuracy:
            lines.append("top-1 accuracy: network {:.2f} %, exported {:.2f} %".format(*self.accuracy))
        return "\n".join(lines)


def compare(network: Predict, exported: Predict, batches: Iterable[Batch]) -> Comparison:
    """Both on the same images; accuracies where all have labels."""
    count = agreeing = right = exported_right = 0
    difference = largest = 0.0
    labelled = True
    for images, labels in batches:
        ours, theirs = network(images), exported(images)
        difference = max(difference, float(np.abs(theirs - ours).max()))
        largest = max(largest, float(np.abs(ours).max()))
        best, exported_best = ours.argmax(1), theirs.argmax(1)
        count += len(images)
        agreeing += int((best == exported_best).sum())
        labelled = labelled and labels is not None
        if labels is not None:
            right += int((best == labels).sum())
            exported_right += int((exported_best == labels).sum())
    accuracy = (100 * right / count, 100 * exported_right / count) if labelled else None
    return Comparison(count, difference, largest, agreeing, accuracy)


def logits_of(config: CfgNode, model: nn.Layer) -> Predict:
    logits = build_logits(config, model)
    return lambda images: logits(paddle.to_tensor(images)).numpy()


def calibration_images(config: CfgNode, args: argparse.Namespace) -> list[np.ndarray]:
    """Images one by one, since ranges are those of batches."""
    if args.images:
        batches = _of_files(config, args)
    else:
        batches = _of_loader(build_sample_loader(config, "train", args.num_images))
    return [image[None] for images, _ in batches for image in images]


def comparison_images(config: CfgNode, args: argparse.Namespace, shape: Sequence[int]) -> tuple[Iterable[Batch], str]:
    """What to compare on, and what that is in words."""
    if args.images:
        return _of_files(config, args), "the named images"
    if args.data_path:
        loader = build_sample_loader(config, "val", args.num_images)
        return _of_loader(loader), f"validation images of {config.DATA.DATA_PATH}"
    generator = np.random.default_rng(0)
    batches = [(generator.standard_normal([n, *shape], dtype="float32"), None) for n in RANDOM_BATCHES]
    return batches, "random numbers (-data_path and -images are for real images)"


def _of_loader(loader: EvalLoader) -> Iterable[Batch]:
    for images, labels in progress(loader, len(loader), "images"):
        yield images.numpy(), labels.numpy()


def _of_files(config: CfgNode, args: argparse.Namespace) -> Iterable[Batch]:
    loader = build_file_loader(config, list(find_images(args.images))[: args.num_images])
    for batch, (images, labels) in enumerate(_of_loader(loader)):
        for i in np.flatnonzero(labels == UNREADABLE):
            loader.source.image(batch * BATCH_SIZE + int(i))  # raises the error that says why
        yield images, None
