"""Exported networks in place of a configuration and weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import paddle
from yacs.config import CfgNode

from paddlevit.commands.classifier import Logits
from paddlevit.config import get_config, update_config, with_values
from paddlevit.errors import MissingFileError, UserError
from paddlevit.export import DESCRIPTION_FILE, data_values, open_exported, read_description

_IN_THE_DESCRIPTION = ("cfg", "pretrained", "labels", "data_path", "num_classes", "image_size", "amp")


def configure_exported(args: argparse.Namespace) -> tuple[CfgNode, Sequence[str], Path]:
    """The configuration that makes the images of the network `args.exported`, the names of its classes, its file.

    Raises UserError.
    """
    for flag in _IN_THE_DESCRIPTION:
        if getattr(args, flag):
            raise UserError(f"-{flag} does not go with -exported: its {DESCRIPTION_FILE} says all")
    path = Path(args.exported)
    if not path.exists():
        raise MissingFileError(f"-exported {path}: there is no such folder or file")
    folder = path if path.is_dir() else path.parent
    description = read_description(folder)
    config = update_config(with_values(get_config(), data_values(description)), args)
    return config, description["class_names"], folder / description["files"][-1] if path.is_dir() else path


def exported_logits(file: Path) -> Logits:
    """What the network in `file` says of images, on the device that Paddle has been set to."""
    predict = open_exported(file, device=paddle.device.get_device().split(":")[0])
    return lambda images: paddle.to_tensor(predict(images.numpy()))
