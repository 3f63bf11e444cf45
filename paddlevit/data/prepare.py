"""Data sets in the layouts that the sources read: written from scikit-learn's images, listed, divided, and checked."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

from paddlevit.data.index import CLASS_NAMES_FILE, class_names_text
from paddlevit.data.sources import SPLITS, FolderSource, Source, class_folders, open_folder, open_imagenet
from paddlevit.data.ziparchive import ZipArchive
from paddlevit.errors import MissingFileError, UserError
from paddlevit.runtime.files import write_bytes

Bar = Callable[..., Iterable]  # as tqdm: (iterable, total=, desc=)

_DIGIT_SIDE = 32
_NUM_VAL_DIGITS = 360
_SPLIT_SEED = 0

# Class: in which of scikit-learn's two photographs it is seen, and where (left, top, right, bottom).
_PHOTOS = {
    "flower": ("flower.jpg", (170, 85, 445, 360)),
    "temple": ("china.jpg", (65, 60, 350, 390)),
    "tree": ("china.jpg", (352, 285, 640, 427)),
}
_PHOTO_SIDES = (64, 96)
_LARGE_CUT = (500, 375)  # pixels, some 60 to 120 kB
_PHOTO_COUNTS = {"train": 30, "val": 10}  # of each class

_IMAGES_PER_TASK = 32  # of a process that checks images


def write_digits(folder: Path, *, force: bool = False) -> str:
    """Write train/<digit>/NNNN.png and val/<digit>/NNNN.png, 32 x 32 and grey, and their lists; NNNN is the image's
    number in scikit-learn's data set. Returns what was done. What was interrupted has no lists.
    """
    data = _datasets().load_digits()
    in_val = digits_in_val(data.target)
    texts, paths = {CLASS_NAMES_FILE: class_names_text([str(digit) for digit in range(10)])}, []
    for split, chosen in zip(SPLITS, (np.flatnonzero(~in_val), np.flatnonzero(in_val))):
        own = [f"{split}/{data.target[i]}/{i:04d}.png" for i in chosen]
        texts[f"{split}_list.txt"] = list_text(own, data.target[chosen])
        paths += own
    _refuse_other(folder, texts, force)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as unfinished:
        for path in paths:
            file = Path(unfinished, path)
            image = Image.fromarray(np.round(data.images[int(file.stem)] * (255 / 16)).astype(np.uint8))  # of 0 to 16
            _save(image.resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BICUBIC), file)
        for split in SPLITS:
            shutil.copytree(Path(unfinished, split), folder / split, copy_function=os.replace, dirs_exist_ok=True)
    write_texts(folder, texts)
    return f"{(~in_val).sum()} digits to train on and {in_val.sum()} to validate are in {folder}"


def digits_in_val(labels: np.ndarray) -> np.ndarray:
    """Whether each image is a validation image: bool [N], the same in every version of NumPy."""
    counts = np.bincount(labels)
    shares = counts * _NUM_VAL_DIGITS / len(labels)
    taken = np.floor(shares).astype(int)
    taken[np.argsort(taken - shares, kind="stable")[: _NUM_VAL_DIGITS - taken.sum()]] += 1
    rng = np.random.RandomState(_SPLIT_SEED)  # the only generator whose numbers NumPy will never change
    in_val = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(taken):
        in_val[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return in_val


def write_photos(folder: Path, *, force: bool = False) -> str:
    """Write train/<class>/NNN.jpg and val/<class>/NNN.jpg, always the same cuts of two photographs: to train on from
    the left 60 % of the place where the class is seen, others from right of that. Returns what was done.
    """
    refuse_filled(folder, force)
    photos = photographs()
    for path, photo, box in cuts():
        _save(photos[photo].crop(box), folder / path, quality=95)
    train, val = (count * len(_PHOTOS) for count in _PHOTO_COUNTS.values())
    return f"{train} cuts of photographs to train on and {val} to validate, of {', '.join(_PHOTOS)}, are in {folder}"


def cuts() -> Iterator[tuple[str, str, tuple[int, int, int, int]]]:
    """Path of each cut, its photograph, and where it is there: left, top, right, bottom."""
    rng = np.random.RandomState(_SPLIT_SEED)
    for name, (photo, (left, top, right, bottom)) in _PHOTOS.items():
        middle = left + round(0.6 * (right - left))
        for split, (first, last) in zip(SPLITS, ((left, middle), (middle, right))):
            for i in range(_PHOTO_COUNTS[split]):
                side = rng.randint(_PHOTO_SIDES[0], _PHOTO_SIDES[1] + 1)
                x, y = rng.randint(first, last - side + 1), rng.randint(top, bottom - side + 1)
                yield f"{split}/{name}/{i:03d}.jpg", photo, (x, y, x + side, y + side)


def write_large_cuts(folder: Path, count: int) -> None:
    """Write `count` cuts for each split, a class per photograph, that take about the time of ImageNet's files."""
    (width, height), rng = _LARGE_CUT, np.random.RandomState(_SPLIT_SEED)
    photos = list(photographs().values())
    for split in SPLITS:
        for i in range(count):
            photo = photos[i % len(photos)]
            top, left = rng.randint(photo.height - height + 1), rng.randint(photo.width - width + 1)
            cut = photo.crop((left, top, left + width, top + height))
            _save(cut, folder / split / f"class_{i % len(photos)}" / f"{i:05d}.jpg", quality=97)


def _save(image: Image.Image, file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


def photographs() -> dict[str, Image.Image]:
    """scikit-learn's two photographs, of 640 x 427 pixels, by the names of their files."""
    data = _datasets().load_sample_images()
    return {os.path.basename(file): Image.fromarray(image) for file, image in zip(data.filenames, data.images)}


def _datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError("these images come with scikit-learn: pip install '.[demo]' in the clone") from None
    return datasets


def write_lists(folder: Path, *, force: bool = False) -> str:
    """Write the lists of the images in train/<class>/ and val/<class>/, and class_names.txt. Returns what was done."""
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    if not splits:
        raise MissingFileError(f"{folder} has neither a folder train nor a folder val")
    classes = class_folders(folder / splits[0])
    texts = {CLASS_NAMES_FILE: class_names_text(classes)}
    counts = []
    for split in splits:
        source = FolderSource(folder / split, classes, classes)
        texts[f"{split}_list.txt"] = list_text([f"{split}/{path}" for path in source.relative_paths()], source.labels)
        counts.append(f"{len(source)} images of {split}")
    _refuse_other(folder, texts, force)
    write_texts(folder, texts)
    return f"listed {' and '.join(counts)}, {len(classes)} classes, in {folder}"


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
    each of `folds`, to output/fold_<number>. Images stay on one side where the pattern `group_by` finds the same in
    their paths. Returns what was done.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}")
    if any((folder / split).is_dir() for split in SPLITS):
        raise UserError(f"{folder} has a folder train or val: it is divided already")
    classes = class_folders(folder)
    source = FolderSource(folder, classes, classes)
    paths = source.relative_paths()
    shares = [1 / folds] * folds if folds else [1 - val, val]
    sides = divided(source.labels, _groups(paths, group_by), shares, seed=seed)
    places = {i: output / f"fold_{i}" for i in range(folds)} if folds else {1: output}
    texts = {side: _split_texts(source, folder, place, sides == side) for side, place in places.items()}
    for side, place in places.items():
        _refuse_other(place, texts[side], force)
    said = []
    for side, place in places.items():
        place.mkdir(parents=True, exist_ok=True)
        write_texts(place, texts[side])
        in_val = source.labels[sides == side]
        absent = ", ".join(name for label, name in enumerate(classes) if label not in in_val)
        said += [f"{place / 'val_list.txt'} has no image of {absent}"] * bool(absent)
        num_train = len(paths) - len(in_val)
        said.append(f"{num_train} images to train on and {len(in_val)} to validate, {len(classes)} classes, in {place}")
    return "\n".join(said)


def _split_texts(source: FolderSource, folder: Path, place: Path, in_val: np.ndarray) -> dict[str, str]:
    """Lists in `place`, of images in `folder`, by the files' names; `in_val` [N] says which are to validate with."""
    texts, inside = {CLASS_NAMES_FILE: class_names_text(source.class_names)}, place.resolve() == folder.resolve()
    for split, chosen in zip(SPLITS, (np.flatnonzero(~in_val), np.flatnonzero(in_val))):
        there = set(source.labels[chosen].tolist())
        absent = [name for label, name in enumerate(source.class_names) if label not in there]
        if absent and (split == "train" or not there):
            raise UserError(f"{folder / absent[0]}: no image is left for {split} in {place}")
        paths = [source.relative_path(i) if inside else os.path.abspath(source.name(i)) for i in chosen.tolist()]
        texts[f"{split}_list.txt"] = list_text(paths, source.labels[chosen])
    return texts


def divided(labels: np.ndarray, groups: Sequence[str], shares: Sequence[float], *, seed: int) -> np.ndarray:
    """The side [N] of each image, such that every side has its share of every class, and a group one side.

    Groups come in random order, the largest first; each goes to the side that lacks most of its classes.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"-seed must be 0 to {2**32 - 1}, got {seed}")
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


def write_zips(folder: Path, output: Path, *, bar: Bar, force: bool = False) -> str:
    """Write <split>.zip, its members stored, and <split>_map.txt for the images of every split, and class_names.txt.
    Returns what was done.

    A zip file that is there with the same members stays; what was interrupted has no maps.
    """
    sources: dict[str, Any] = {}
    for split in SPLITS:
        if (folder / f"{split}_list.txt").is_file():
            sources[split] = open_imagenet(folder, split)
        elif (folder / split).is_dir():
            sources[split] = open_folder(folder, split)
    if not sources:
        raise MissingFileError(f"{folder} has no folders train and val, and no train_list.txt and val_list.txt")
    output.mkdir(parents=True, exist_ok=True)
    # Members lie below where they are unpacked: as tar does, a list's absolute paths lose their first slash.
    names = {split: [path.lstrip("/") for path in source.relative_paths()] for split, source in sources.items()}
    texts: dict[str, str] = {}
    for split, source in sources.items():
        texts[CLASS_NAMES_FILE] = class_names_text(source.class_names)
        texts[f"{split}_map.txt"] = list_text(names[split], source.labels, "\t")
    _refuse_other(output, texts, force)
    for split, source in sources.items():
        if force or not _holds(output / f"{split}.zip", names[split]):
            _write_zip(output / f"{split}.zip", bar(names[split], desc=split), source)
    write_texts(output, texts)
    return f"{sum(map(len, names.values()))} images are in zip files, with their maps, in {output}"


def _holds(path: Path, names: Sequence[str]) -> bool:
    """Whether a zip file is there, with these members. Raises UserError where it has others."""
    if not path.exists():
        return False
    if list(ZipArchive(path).names) != [os.fsencode(name) for name in names]:
        raise UserError(f"{path} is there already, with other members: use another folder, or -force")
    return True


def _write_zip(path: Path, names: Iterable[str], source: Source) -> None:
    """Write all images under these names, stored, as they are compressed already."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with zipfile.ZipFile(unfinished, "w") as file:
            for i, name in enumerate(names):
                member = zipfile.ZipInfo(name)  # of 1980: the same images always make the same file
                member.external_attr = 0o644 << 16
                file.writestr(member, source.read(i))
        os.replace(unfinished, path)
    except UnicodeEncodeError:
        raise UserError(f"{name!r}: names in a zip file are UTF-8; rename the file") from None
    finally:
        unfinished.unlink(missing_ok=True)


def list_text(paths: Sequence[str], labels: np.ndarray, separator: str = " ") -> str:
    """A list file. Raises UserError where a path cannot stand in one."""
    for path in paths:
        if "\n" in path or "\r" in path or path != path.strip():
            raise UserError(f"{path!r}: a path in a list has no line break, and no space at its ends; rename the file")
    return "".join(f"{path}{separator}{label}\n" for path, label in zip(paths, labels))


def refuse_filled(folder: Path, force: bool) -> None:
    """Raises UserError where a folder is not empty."""
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name another folder, or -force to write into it")


def _refuse_other(folder: Path, texts: dict[str, str], force: bool) -> None:
    """Raises UserError where one of the files `texts`, content by name, is there with other content."""
    for file, text in ((folder / name, text) for name, text in texts.items()):
        if not force and file.exists() and file.read_bytes() != text.encode("utf-8", "surrogateescape"):
            raise UserError(f"{file} is there already, with other content: use another folder, or -force")


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write files, content by name, each at once or not at all."""
    for name, text in texts.items():
        write_bytes(folder / name, text.encode("utf-8", "surrogateescape"))  # file names that are no UTF-8 stay


def check_image(source: Source, i: int) -> str:
    """Nothing, where an image can be decoded. Raises UserError where not."""
    source.image(i)
    return ""


def look_at_images(source: Source, look: Callable[[Source, int], Any], *, num_workers: int) -> Iterator[Any]:
    """What `look` makes of every image, in processes: its value, or the message of its UserError."""
    if num_workers == 0:
        yield from (_seen(source, look, i) for i in range(len(source)))
        return
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _keep, (source, look)) as pool:
        try:
            yield from pool.map(_look, range(len(source)), chunksize=_IMAGES_PER_TASK)
        except BrokenProcessPool:
            raise UserError(
                "a process that decodes images has died, often for lack of memory: use fewer -workers"
            ) from None


_kept: tuple[Source, Callable[[Source, int], Any]]


def _keep(*kept: Any) -> None:
    """Hold the source in this process: with every task it would be sent again."""
    global _kept
    _kept = kept


def _look(i: int) -> Any:
    return _seen(*_kept, i)


def _seen(source: Source, look: Callable[[Source, int], Any], i: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about files that can be read all the same
        try:
            return look(source, i)
        except UserError as error:
            return str(error)
