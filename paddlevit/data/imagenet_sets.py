"""ImageNet's other evaluation sets: V2, A, R and Sketch in class folders, ReaL as labels of the validation set."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlevit.data.index import imagenet_names, read_file
from paddlevit.data.sources import FolderSource, Source, class_folders, open_imagenet
from paddlevit.errors import MissingFileError, UserError

SETS = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-real")
SUBSETS = ("imagenet-a", "imagenet-r")  # of 200 classes, the only ones that a prediction may be (Hendrycks et al. 2021)
_REAL_FILE = "real.json"


def open_imagenet_set(root: Path, name: str) -> Source:
    """The images of one of SETS, labelled from 0 to 999 as ImageNet is."""
    if name == "imagenet-real" or not root.is_dir():  # which is said there
        return open_imagenet(root, "val")
    names = imagenet_names(root)
    folders = [str(i) for i in range(len(names))] if name == "imagenet-v2" else list(names)
    other = sorted(set(class_folders(root)) - set(folders))
    if other:
        called = "their labels, 0 to 999" if name == "imagenet-v2" else "ImageNet's identifiers, such as n01440764"
        raise UserError(f"{root / other[0]}: the class folders of {name} are called by {called}")
    return FolderSource(root, folders, list(names.values()))


def real_labels(root: Path, names: Sequence[str]) -> list[list[int]]:
    """The ReaL labels (Beyer et al. 2020) of validation images called ...ILSVRC2012_val_00000001.JPEG and so on: of
    `root`/real.json, a list of lists by the number of the image, of which some have none.
    """
    file = root / _REAL_FILE
    if not file.exists():
        raise MissingFileError(f"{file} is missing: imagenet-real needs the ReaL labels there")
    text = read_file(file)
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} holds no JSON: {error}") from None
    if not (isinstance(labels, list) and all(isinstance(of_image, list) for of_image in labels)):
        raise UserError(f"{file} must be a list, with a list of labels for each validation image")
    found = []
    for name in names:
        number = re.search(r"_val_(\d{8})\.", name)
        if number is None or not 1 <= int(number[1]) <= len(labels):
            raise UserError(f"{name} has no number from 1 to {len(labels)}, by which {file} knows it")
        found.append(labels[int(number[1]) - 1])
    return found


def real_accuracy(predicted: np.ndarray, labels: list[list[int]]) -> dict[str, Any]:
    """{"acc1", "num_images", ...}: the percentage of images, of those with labels, whose prediction is one of them."""
    right = [prediction in allowed for prediction, allowed in zip(predicted.tolist(), labels) if allowed]
    if not right:
        raise UserError(f"none of the images has a label in {_REAL_FILE}")
    unknown = dict.fromkeys(("loss", "acc5", "balanced_acc", "macro_f1"))
    return {**unknown, "acc1": 100.0 * sum(right) / len(right), "num_images": len(right)}
