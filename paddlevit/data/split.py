"""Divides one folder of classes into images to train on and to validate with, or into folds; nothing is copied."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paddlevit.data.index import CLASS_NAMES_FILE, class_names_text
from paddlevit.data.prepare import list_text, refuse_other, write_texts
from paddlevit.data.sources import SPLITS, FolderSource, class_folders
from paddlevit.errors import MissingFileError, UserError


def write_splits(
    folder: Path,
    output: Path,
    *,
    val: float = 0.2,
    folds: int | None = None,
    group_by: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> str:
    """Write train_list.txt, val_list.txt and class_names.txt for the images in folder/<class>/ to `output`, or, for
    each of `folds`, to output/fold_<number>. What was done, a line each.

    Images stay on one side where the pattern `group_by` finds the same in their paths. Raises MissingFileError or
    UserError where the folder, or what is asked for, cannot be divided.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}")
    if any((folder / split).is_dir() for split in SPLITS):
        raise UserError(f"{folder} has a folder train or val: it is divided already")
    classes = class_folders(folder)
    source = FolderSource(folder, classes, classes)
    paths = [source.relative_path(i) for i in range(len(source))]
    shares = [1 / folds] * folds if folds else [1 - val, val]
    sides = divided(source.labels, _groups(paths, group_by), shares, seed=seed)
    places = {i: output / f"fold_{i}" for i in range(folds)} if folds else {1: output}
    said = []
    for side, place in places.items():
        if os.path.realpath(place) != os.path.realpath(folder):
            paths = [os.path.abspath(folder / path) for path in paths]
        texts = {CLASS_NAMES_FILE: class_names_text(classes)}
        for split, chosen in zip(SPLITS, (np.flatnonzero(sides != side), np.flatnonzero(sides == side))):
            absent = [name for label, name in enumerate(classes) if label not in source.labels[chosen]]
            if absent and (split == SPLITS[0] or len(absent) == len(classes)):
                raise UserError(f"{folder / absent[0]}: no image is left for {split} in {place}")
            said += [f"{place / split}_list.txt has no image of {', '.join(absent)}"] * bool(absent)
            texts[f"{split}_list.txt"] = list_text([(paths[i], source.label(i)) for i in chosen.tolist()])
        refuse_other(place, texts, force)
        place.mkdir(parents=True, exist_ok=True)
        write_texts(place, texts)
        num = int((sides == side).sum())
        said.append(f"{len(paths) - num} images to train on and {num} to validate, {len(classes)} classes, in {place}")
    return "\n".join(said)


def divided(labels: np.ndarray, groups: Sequence[str], shares: Sequence[float], *, seed: int) -> np.ndarray:
    """The side [N] of each image, such that every side has its share of every class, and a group one side.

    Groups come in random order, the largest first; each goes to the side that lacks most of its classes.
    """
    members = collections.defaultdict(list)
    for i in np.random.RandomState(seed).permutation(len(labels)).tolist():  # a generator that NumPy will not change
        members[groups[i]].append(i)
    wanted = np.outer(shares, np.bincount(labels))
    lacking = wanted.copy()
    sides = np.empty(len(labels), dtype=np.int64)
    for numbers in sorted(members.values(), key=len, reverse=True):
        own, counts = np.unique(labels[numbers], return_counts=True)
        side = int((lacking[:, own] / wanted[:, own] @ counts).argmax())
        lacking[side, own] -= counts
        sides[numbers] = side
    return sides


def _groups(paths: Sequence[str], pattern: str | None) -> Sequence[str]:
    """What `pattern` (its first group, if it has one) finds in each path; without a pattern, each path itself."""
    if pattern is None:
        return paths
    try:
        found = [re.search(pattern, path) for path in paths]
    except re.error as error:
        raise UserError(f"-group_by '{pattern}' is not a regular expression: {error}") from None
    if None in found:
        raise UserError(f"-group_by '{pattern}' finds nothing in {paths[found.index(None)]}")
    return [match.group(bool(match.re.groups)) or "" for match in found if match]
