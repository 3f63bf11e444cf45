"""What classes are called on two sides that both know it: names decide the labels, and a difference is an error."""

from __future__ import annotations

import collections
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from yacs.config import CfgNode

from paddlevit.config import OF_IMAGES, changes
from paddlevit.data.index import CLASS_NAMES_FILE, imagenet_names, plain_name, read_class_names, readable
from paddlevit.data.sources import FolderSource, Source, say_once
from paddlevit.errors import UserError


class Classes(NamedTuple):
    """The names of a model's classes."""

    names: Sequence[str]
    where: str  # the file that has them
    advice: str = ""  # where the data has others
    whole: bool = False  # whether each must have images to train on


def folder_of(weights: str | os.PathLike[str]) -> Path:
    """The folder of a weights file, or the folder, a run's or Hugging Face's, that is named. Other names are none."""
    path = Path(os.path.expanduser(weights))
    is_file = path.is_file() or Path(f"{path}.pdparams").is_file()
    return path.parent if is_file else path


def changes_since_run(weights: str | os.PathLike[str], config: CfgNode) -> list[str]:
    """How `config` makes images otherwise than the run that `weights` lie in, a line a key; none without a run."""
    file = folder_of(weights) / "config.yaml"
    lines = changes(file, config, OF_IMAGES) if file.is_file() else []
    return [f"in the run of these weights {line}" for line in lines]


def classes_beside(weights: str | os.PathLike[str]) -> Classes | None:
    """The classes of weights, as the class_names.txt of their run or a Hugging Face config.json beside them says."""
    folder = folder_of(weights)
    names = read_class_names(folder / CLASS_NAMES_FILE)
    if names is not None:
        return Classes(names, str(folder / CLASS_NAMES_FILE))
    file = folder / "config.json"
    try:
        by_index = json.loads(file.read_bytes())["id2label"]
        names = [plain_name(by_index[str(i)]) for i in range(len(by_index))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    made_up = names == [f"LABEL_{i}" for i in range(len(names))]
    return None if made_up or not names else Classes(names, str(file))


def follow(source: Source, classes: Classes, root: Path, split: str) -> None:
    """Number the classes of `source`, data in `root`, as `classes`. Raises UserError for one that these lack."""
    ours, theirs = [plain_name(name) for name in source.class_names], [plain_name(name) for name in classes.names]
    unnamed = _numbers(ours) and not isinstance(source, FolderSource)
    if unnamed or (_numbers(theirs) and not set(theirs).issuperset(ours)):
        if ours != theirs:
            say_once(f"{classes.where} and {root} have no names in common to compare: labels are used unchanged")
        return
    by_name = {name: i for names in (readable(theirs, root), theirs) for i, name in enumerate(names)}
    by_name |= dict.fromkeys({name for name, count in collections.Counter(theirs).items() if count > 1}, -1)
    same = [name == other for name, other in itertools.zip_longest(ours, theirs[: len(ours)])]
    new = np.array([label if same[label] else by_name.get(name, -1) for label, name in enumerate(ours)], np.int32)
    imagenet = imagenet_classes(ours, root, len(theirs)) if new.min() < 0 else None
    if imagenet:  # has other words for the same classes in each collection, always in this order
        by_word = {name: -1 if imagenet.names.count(name) > 1 else i for i, name in enumerate(imagenet.names)}
        new = np.array([by_word[name] for name in ours], np.int32)
        new = np.arange(len(ours), dtype=np.int32) if ours == list(imagenet.names) else new
    counts = np.bincount(source.labels, minlength=len(ours))
    for label in np.flatnonzero((new < 0) & (counts > 0))[:1]:
        instead = f": class {label} is '{theirs[label]}' there" if label < len(theirs) else ""
        what = f"class {label} of {root} is '{ours[label]}', which {classes.where} does not have"
        raise UserError(f"{what}{instead}{classes.advice}")
    missing = sorted(set(range(len(theirs))).difference(new[counts > 0].tolist()))
    if missing and classes.whole and split == "train":
        what = f"class {missing[0]} is '{theirs[missing[0]]}' in {classes.where}, but {root} has no image of it"
        raise UserError(f"{what}{classes.advice}")
    source.labels = new[source.labels]
    source.class_names = classes.names


def imagenet_classes(names: Sequence[str], root: Path, num_classes: int) -> Classes | None:
    """ImageNet's classes where `names` are some of them, and a model has all `num_classes` of them."""
    words = list(imagenet_names(root).values())
    some = len(words) == num_classes and set(words).issuperset(names)
    return Classes(words, f"ImageNet's names above {root}") if some else None


def refuse_difference(ours: Classes, theirs: Classes) -> None:
    """Raises UserError, naming the first difference, unless both have the same names, or one only has numbers."""
    if _numbers(ours.names) or _numbers(theirs.names):
        return
    for i, names in enumerate(itertools.zip_longest(ours.names, theirs.names, fillvalue="")):
        own, other = map(plain_name, names)
        if own != other:
            raise UserError(f"class {i} is '{own}' in {ours.where} and '{other}' in {theirs.where}{ours.advice}")


def _numbers(names: Sequence[str]) -> bool:
    """Whether the names are the labels, as where nothing is known of them."""
    return list(names) == [str(label) for label in range(len(names))]
