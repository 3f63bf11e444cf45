"""What to look at in a data set before training: duplicates, leaks, odd images, and labels that a probe doubts."""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
from PIL import Image

from paddlevit.data.decode import decode, is_turned
from paddlevit.data.index import CLASS_NAMES_FILE, class_names_text
from paddlevit.data.prepare import Bar, divided, list_text, look_at_images
from paddlevit.data.sources import SPLITS, Source, ZipSource, open_imagenet
from paddlevit.errors import UserError
from paddlevit.linear_probe import doubted, out_of_fold

Features = Callable[[Sequence[bytes]], np.ndarray]  # of image files: float32 [N, D]

_SIDE = 16  # of the small image that stands for each
_WAVES = 8
_BANDS, _BITS = 16, 16  # how often, and by how many of an image's 64 bits, others like it are looked for
_NEIGHBOURS = 100  # with the same bits that an image is compared with
_DIFFERENT_BITS = 12
_DIFFERENCE = 0.07  # at most, between small images of std 1: no two of scikit-learn's digits are that close
_LEAST_STD = 16.0  # in grey levels; what is flatter is compared by levels
_FOLDS = 5
_ODD_SCALE, _ODD_ASPECT = 4.0, 3.0  # times smaller or larger than the median; times longer than wide
_MOST_PROBABILITIES = 10**8  # images x classes: of more the probe would take hours
_BATCH = 32


class _Look(NamedTuple):
    pixels: bytes  # hash of size and pixels
    size: tuple[int, int]
    turned: bool  # by its EXIF orientation
    small: np.ndarray  # uint8 [16, 16, 3]


class _Images:
    """All images, those to train on before those to validate with."""

    def __init__(self, folder: Path, *, num_workers: int, bar: Bar) -> None:
        self.sources = [open_imagenet(folder, split) for split in SPLITS]
        if isinstance(self.sources[0], ZipSource):
            raise UserError(f"{folder} has zip files, allowed: list files, or folders of classes")
        self.num_train = len(self.sources[0])
        self.labels = np.concatenate([source.labels for source in self.sources]).astype("int64")
        self.class_names = self.sources[0].class_names
        seen: list[_Look | str] = []
        for split, source in zip(SPLITS, self.sources):
            looks = look_at_images(source, _look, num_workers=num_workers)
            seen += bar(looks, total=len(source), desc=split)
        self.looks = {i: look for i, look in enumerate(seen) if isinstance(look, _Look)}
        self.unreadable = {i: look for i, look in enumerate(seen) if isinstance(look, str)}
        first: dict[bytes, int] = {}
        self.first = {i: first.setdefault(look.pixels, i) for i, look in self.looks.items()}  # with the same pixels

    def place(self, i: int) -> tuple[Source, int]:
        """The source of the i-th image and its number there."""
        return (self.sources[0], i) if i < self.num_train else (self.sources[1], i - self.num_train)

    def name(self, i: int) -> str:
        source, own = self.place(i)
        return os.path.abspath(source.name(own))

    def described(self, i: int, **values: Any) -> dict[str, Any]:
        """The i-th image and `values` as audit.json has it."""
        split, label = SPLITS[i >= self.num_train], self.labels[i]
        return {"image": self.name(i), "split": split, "class": self.class_names[label], **values}


def audit(
    folder: Path, *, num_workers: int, seed: int, bar: Bar, features: Features | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is found in a data set of list files or folders of classes, as audit.json has it; and the texts of lists
    without images of train that cannot be read or stand elsewhere too. The probe sees `features` of images, by default
    some of their pixels.
    """
    images = _Images(folder, num_workers=num_workers, bar=bar)
    groups = _groups(images)
    removed = {i: "cannot be read" for i in images.unreadable if i < images.num_train}
    for numbers in groups:
        removed.update(_superfluous(images, numbers))
    suspects, accuracy = _suspects(images, groups, features, seed, bar)
    described, looks = images.described, images.looks
    counts = [np.bincount(source.labels, minlength=len(images.class_names)).tolist() for source in images.sources]
    classes = zip(images.class_names, *counts)
    findings = {
        "classes": [{"class": name, "train": train, "val": val} for name, train, val in classes],
        "unreadable": list(images.unreadable.values()),
        "duplicates": [_duplicate(images, numbers) for numbers in groups if len(numbers) > 1],
        "suspects": [described(i, likely=images.class_names[likely]) for i, likely in suspects],
        "probe_accuracy": accuracy,
        "odd": [described(i, size=looks[i].size) for i in _odd(looks)],
        "turned": [described(i) for i, look in looks.items() if look.turned],
        "removed": [described(i, why=why) for i, why in sorted(removed.items())],
    }
    return findings, _list_texts(images, removed)


def _look(source: Source, i: int) -> _Look:
    data = source.read(i)
    image = decode(data, source.name(i), source.decoding)
    digest = hashlib.blake2b(b"%d " % image.width + image.tobytes(), digest_size=16).digest()
    small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    return _Look(digest, image.size, is_turned(data), small)


def _groups(images: _Images) -> list[list[int]]:
    """All images that can be read, those together that look the same."""
    top = {i: i for i in images.first.values()}

    def topmost(i: int) -> int:
        while top[i] != i:
            top[i] = i = top[top[i]]
        return i

    numbers = list(top)
    for one, other in _similar(_small(images, numbers)):
        low, high = sorted((topmost(numbers[one]), topmost(numbers[other])))
        top[high] = low
    members: dict[int, list[int]] = {}
    for i, first in images.first.items():
        members.setdefault(topmost(first), []).append(i)
    return list(members.values())


def _small(images: _Images, numbers: Sequence[int]) -> np.ndarray:
    return np.array([images.looks[i].small for i in numbers], "uint8").reshape(-1, _SIDE, _SIDE, 3)


def _similar(small: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of small images [N, 16, 16, 3] that are nearly the same.

    Candidates agree in 16 of 64 signs of their lowest frequencies (a perceptual hash), chosen at random, 16 times: of
    pairs that differ in four signs one in 1,000 is missed.
    """
    waves = np.cos(np.pi / (2 * _SIDE) * np.outer(np.arange(_WAVES), 2 * np.arange(_SIDE) + 1))
    signs = (waves @ small.mean(axis=3) @ waves.T).reshape(-1, _WAVES**2) > 1  # 0 and rounding where all is flat
    for band in range(_BANDS):
        chosen = np.random.RandomState(band).permutation(_WAVES**2)[:_BITS]
        keys = signs[:, chosen] @ (1 << np.arange(_BITS))
        order = np.argsort(keys, kind="stable")
        place = np.arange(len(order))
        for step in range(1, _NEIGHBOURS + 1):
            place = place[place < len(order) - step]
            place = place[keys[order[place]] == keys[order[place + step]]]
            one, other = order[place], order[place + step]
            near = (signs[one] != signs[other]).sum(axis=1) <= _DIFFERENT_BITS
            one, other = one[near], other[near]
            difference = _standardised(small[one]) - _standardised(small[other])
            same = np.sqrt((difference**2).mean(axis=1)) <= _DIFFERENCE
            yield from zip(one[same].tolist(), other[same].tolist())


def _standardised(small: np.ndarray) -> np.ndarray:
    """[N, D] of std 1, and nearly without the mean: a little lighter is the same, black and white are not."""
    x = small.reshape(len(small), 3 * _SIDE**2).astype("float32")
    return (x - 0.9 * x.mean(axis=1, keepdims=True)) / np.maximum(x.std(axis=1, keepdims=True), _LEAST_STD)


def _duplicate(images: _Images, numbers: Sequence[int]) -> dict[str, Any]:
    return {
        "leak": numbers[0] < images.num_train <= numbers[-1],
        "disagree": len(set(images.labels[numbers].tolist())) > 1,
        "same_pixels": len({images.first[i] for i in numbers}) == 1,
        "images": [images.described(i) for i in numbers],
    }


def _superfluous(images: _Images, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Which of a group of images train is to be without, and why."""
    train = [i for i in numbers if i < images.num_train]
    classes = collections.defaultdict(set)
    for i in train:
        classes[images.first[i]].add(int(images.labels[i]))
    for i in train:
        if len(train) < len(numbers):
            yield i, "is in val too"
        elif len(classes[images.first[i]]) > 1:
            yield i, "is in several classes"
        elif images.first[i] != i:
            yield i, f"has the pixels of {images.name(images.first[i])}"


def _odd(looks: dict[int, _Look]) -> list[int]:
    """Images that are much smaller or larger than most, or much longer than wide."""
    sizes = np.array([look.size for look in looks.values()], dtype=float).reshape(-1, 2)
    scale = np.sqrt(sizes.prod(axis=1))
    scale /= np.median(scale) if len(scale) else 1.0
    odd = (np.maximum(scale, 1 / scale) > _ODD_SCALE) | (sizes.max(axis=1) > _ODD_ASPECT * sizes.min(axis=1))
    return [i for i, is_odd in zip(looks, odd.tolist()) if is_odd]


def _suspects(
    images: _Images, groups: Sequence[Sequence[int]], features: Features | None, seed: int, bar: Bar
) -> tuple[list[tuple[int, int]], float | None]:
    """Images whose labels are likely wrong with their likely classes, and the accuracy of the probe, which is None
    where there are too few images or too many.
    """
    numbers, num_classes = np.array(list(images.looks), dtype=int), len(images.class_names)
    labels = images.labels[numbers]
    # Of one group in one fold: from one the probe would know the label of another.
    group = {i: str(members[0]) for members in groups for i in members}
    folds = divided(labels, [group[i] for i in images.looks], [1 / _FOLDS] * _FOLDS, seed=seed)
    if not folds.any() or len(numbers) * num_classes > _MOST_PROBABILITIES:
        return [], None
    seen = []
    batches = [numbers[i : i + _BATCH].tolist() for i in range(0, len(numbers), _BATCH)]
    for batch in bar(batches, desc="features"):
        if features is None:
            seen.append(_pixel_features(_small(images, batch)))
        else:
            seen.append(features([source.read(own) for source, own in map(images.place, batch)]))
    parts = out_of_fold(np.concatenate(seen), labels, folds, num_classes)
    probabilities = np.empty([len(numbers), num_classes], "float32")
    for fold, part in enumerate(bar(parts, total=int(folds.max()) + 1, desc="labels")):
        probabilities[folds == fold] = part
    wrong, likely = doubted(probabilities, labels)
    return list(zip(numbers[wrong].tolist(), likely.tolist())), float((probabilities.argmax(axis=1) == labels).mean())


def _pixel_features(small: np.ndarray) -> np.ndarray:
    """float32 [N, 320] of small images: colours at 8 x 8, and at 4 x 4 the strength of edges of 8 directions."""
    x = small.astype("float32")
    down, right = np.gradient(x.mean(axis=3), axis=(1, 2))
    turns = np.arctan2(down, right)[..., None] * (8 / (2 * np.pi))
    away = np.abs((turns - np.arange(8) + 4) % 8 - 4)  # from each direction
    edges = np.hypot(down, right)[..., None] * np.maximum(1 - away, 0)
    return np.concatenate([_cells(x, 8), np.sqrt(_cells(edges, 4))], axis=1).astype("float32")


def _cells(values: np.ndarray, count: int) -> np.ndarray:
    """The means [N, count * count * C] of square parts of values [N, 16, 16, C]."""
    side = _SIDE // count
    return values.reshape(len(values), count, side, count, side, -1).mean(axis=(2, 4)).reshape(len(values), -1)


def _list_texts(images: _Images, removed: dict[int, str]) -> dict[str, str]:
    texts, begin = {CLASS_NAMES_FILE: class_names_text(images.class_names)}, 0
    for split, source in zip(SPLITS, images.sources):
        numbers = [i for i in range(begin, begin + len(source)) if i not in removed]
        texts[f"{split}_list.txt"] = list_text([images.name(i) for i in numbers], images.labels[numbers])
        begin += len(source)
    return texts
