"""What the tools that classify images share: the network with its weights, and the names of its classes."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.config import get_config, update_config, with_values
from paddlevit.data import EvalLoader, open_source
from paddlevit.data.class_names import CLASS_NAMES_FILE, imagenet_names, read_class_names
from paddlevit.data.files import READ
from paddlevit.errors import MissingFileError, UserError
from paddlevit.models import build_model
from paddlevit.runtime import process
from paddlevit.training.journal import progress
from paddlevit.weights import load_weights

Logits = Callable[[Tensor], Tensor]  # images float32 [N, C, H, W] -> [N, classes]


class Guess(NamedTuple):
    """A class and how likely it is, 0 to 1."""

    label: int
    probability: float


def configure(args: argparse.Namespace) -> tuple[CfgNode, Sequence[str]]:
    """The configuration that `args` mean and the names of its classes. Raises UserError."""
    if args.pretrained is None:
        raise UserError("-pretrained FILE is required: the weights (-h lists the flags)")
    folder = Path(args.pretrained).expanduser().parent
    if args.cfg is None:
        args.cfg = str(folder / "config.yaml")
        if not Path(args.cfg).is_file():
            raise UserError(f"-cfg FILE is missing, and there is no {args.cfg} of a run beside the weights")
    config = update_config(get_config(), args)
    if args.labels:
        names: Sequence[str] = _given(Path(args.labels), config)
    else:
        folders = [folder, Path(args.cfg).parent] if Path(args.cfg).is_file() else [folder]
        names = find_class_names(config, folders)
    if names and config.DATA.INFER_NUM_CLASSES:
        config = with_values(config, {"MODEL.NUM_CLASSES": len(names), "DATA.INFER_NUM_CLASSES": False})
    if not config.MODEL.NUM_CLASSES:
        raise UserError("MODEL.NUM_CLASSES is 0: a network without a head predicts nothing")
    return config, names


def build_classifier(config: CfgNode, names: Sequence[str]) -> nn.Layer:
    """The network of `config` with the weights that it names, ready to evaluate; says so where `names` is empty."""
    model = build_model(config)
    load_weights(model, config.MODEL.PRETRAINED)
    model.eval()
    if not names:
        print("the classes have no names here (-labels FILE): these are their numbers", file=sys.stderr)
    return model


def build_logits(config: CfgNode, model: nn.Layer) -> Logits:
    """What `model` says of images, without gradients and in the precision of `config`."""
    enable = config.AMP and process.half_precision(config.AMP_DTYPE)

    @paddle.no_grad()
    def logits(images: Tensor) -> Tensor:
        with paddle.amp.auto_cast(enable=enable, dtype=config.AMP_DTYPE, level=config.AMP_OPT_LEVEL):
            return model(images)

    return logits


def guesses(logits: Logits, loader: EvalLoader, topk: int) -> Iterator[list[Guess] | None]:
    """For each image of `loader`, in order, its `topk` likely classes (all, where there are fewer), the likeliest
    first; None for one that cannot be read.
    """
    for images, labels in progress(loader, len(loader), "images"):
        probabilities = F.softmax(logits(images).astype("float32"))
        best, classes = (part.tolist() for part in paddle.topk(probabilities, min(topk, probabilities.shape[1])))
        for row, label in enumerate(labels.tolist()):
            yield [Guess(*pair) for pair in zip(classes[row], best[row])] if label == READ else None


def find_class_names(config: CfgNode, run_folders: Sequence[Path]) -> Sequence[str]:
    """The names that a training run has saved in one of `run_folders`, or else those of the data in DATA.DATA_PATH, or
    ImageNet's, if its file of names is there; both only where there are as many as the network has classes. Or none.
    """
    for folder in run_folders:
        saved = read_class_names(folder / CLASS_NAMES_FILE)
        if saved is not None:
            return saved
    for split in ("val", "train"):
        with contextlib.suppress(UserError):
            names = open_source(config, split).class_names
            if len(names) == config.MODEL.NUM_CLASSES:
                return names
    found = list(imagenet_names(Path(config.DATA.DATA_PATH)).values())
    return found if len(found) == config.MODEL.NUM_CLASSES else []


def name_of(label: int, names: Sequence[str]) -> str:
    """The class's name, or its number where it has none."""
    return names[label] if label < len(names) else str(label)


def as_json(found: Sequence[Guess], names: Sequence[str]) -> list[dict[str, Any]]:
    """The guesses as objects for JSON."""
    return [
        {"class": label, "name": name_of(label, names), "probability": round(probability, 6)}
        for label, probability in found
    ]


def _given(file: Path, config: CfgNode) -> list[str]:
    names = read_class_names(file)
    if names is None:
        raise MissingFileError(f"-labels {file}: there is no such file")
    if len(names) != config.MODEL.NUM_CLASSES and not config.DATA.INFER_NUM_CLASSES:
        raise UserError(
            f"-labels {file} has {len(names)} names, but the network has {config.MODEL.NUM_CLASSES} classes "
            "(MODEL.NUM_CLASSES)"
        )
    return names
