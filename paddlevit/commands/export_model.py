"""tools/export_model.py: a network with its weights for deployment, compared with what it was exported from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import paddle
from paddle import nn
from yacs.config import CfgNode

from paddlevit.commands.classifier import add_flags, build_classifier, build_logits, configure
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import with_values
from paddlevit.data import EvalLoader, build_file_loader, build_sample_loader
from paddlevit.data.files import UNREADABLE, find_images
from paddlevit.errors import UserError
from paddlevit.export import DESCRIPTION_FILE, FORMATS, Predict, describe, export, open_exported, with_file
from paddlevit.training.checkpoint import write_text
from paddlevit.training.journal import progress

RANDOM_BATCHES = (2, 1, 3)
_BATCH_SIZE = 32
_NUM_IMAGES = 512
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


@exit_code
def main(argv: list[str]) -> int:
    """Export the network that `argv` names, run both on images and print the difference; the exit code."""
    args = parse_args(argv)
    config, names = configure(args)
    config = with_values(config, {"DATA.BATCH_SIZE_EVAL": _BATCH_SIZE})
    calibration = _calibration(config, args) if args.int8 else None
    model = build_classifier(config, names)
    folder, shape = Path(args.output), [config.DATA.IMAGE_CHANNELS, *[config.DATA.IMAGE_SIZE] * 2]
    path = export(model, shape, args.format, folder, calibration=calibration)
    description = with_file(describe(config, model, names), folder, path)
    write_text(folder / DESCRIPTION_FILE, json.dumps(description, indent=1) + "\n")
    images, where = _images(config, args, shape)
    print(f"written to {path}; how to use it: {folder / DESCRIPTION_FILE}\ncompared on {where}:")
    print(compare(_numpy(config, model), open_exported(path), images))
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(description="Export a network for deployment.")
    add_flags(parser)
    flag = parser.flag
    flag("format", default="paddle", help="paddle (default), onnx or openvino")
    flag("output", required=True, metavar="DIR", help="folder to write into")
    flag("int8", action="store_true", help="compute in int8 (openvino), with ranges found on -images or -data_path")
    flag("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="compare on these, not on -data_path or random ones")
    flag("num_images", type=int, default=_NUM_IMAGES, help=f"to compare on, and for -int8, at most ({_NUM_IMAGES})")
    flag("opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any keys of the configuration")
    args = parser.parse_args(argv)
    if args.format not in FORMATS:
        raise UserError(f"-format {args.format}, allowed: {', '.join(FORMATS)}")
    if args.int8 and args.format != "openvino":
        raise UserError(f"-int8 goes with -format openvino, not {args.format}")
    if args.int8 and not (args.images or args.data_path):
        raise UserError("-int8 needs images to find ranges on: -data_path DIR, or -images FOLDER")
    if args.num_images < 1:
        raise UserError(f"-num_images is {args.num_images}, allowed: 1 and above")
    return args


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


def _numpy(config: CfgNode, model: nn.Layer) -> Predict:
    logits = build_logits(config, model)
    return lambda images: logits(paddle.to_tensor(images)).numpy()


def _calibration(config: CfgNode, args: argparse.Namespace) -> list[np.ndarray]:
    """Images one by one, since ranges are those of batches."""
    if args.images:
        batches = _of_files(config, args)
    else:
        batches = _of_loader(build_sample_loader(config, "train", args.num_images))
    return [image[None] for images, _ in batches for image in images]


def _images(config: CfgNode, args: argparse.Namespace, shape: Sequence[int]) -> tuple[Iterable[Batch], str]:
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
            loader.source.image(batch * _BATCH_SIZE + int(i))  # raises the error that says why
        yield images, None
