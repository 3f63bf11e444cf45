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
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

from paddlevit.data.index import CLASS_NAMES_FILE, class_names_text
from paddlevit.data.sources import SPLITS, FolderSource, ListSource, Source, class_folders, open_folder, open_imagenet
from paddlevit.data.ziparchive import ZipArchive
from paddlevit.errors import MissingFileError, UserError
from paddlevit.runtime.files import write_bytes

_DIGIT_SIDE = 32
_NUM_VAL_DIGITS = 360
_SPLIT_SEED = 0

# Classes of the photographs: in which of scikit-learn's two they are seen, and where (left, top, right, bottom).
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
    number in scikit-learn's data set. What was done, in a sentence.

    The split is always the same, 1,437 to 360 images with equal shares of each digit. The lists come last, so that
    what was interrupted has none. Raises UserError where scikit-learn is missing or the folder has other lists.
    """
    data = _datasets().load_digits()
    in_val = digits_in_val(data.target)
    rows: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for i, label in enumerate(data.target.tolist()):
        split = SPLITS[int(in_val[i])]
        rows[split].append((f"{split}/{label}/{i:04d}.png", label))
    texts = {CLASS_NAMES_FILE: class_names_text([str(digit) for digit in range(10)])}
    texts.update((f"{split}_list.txt", list_text(rows[split])) for split in SPLITS)
    _refuse_other(folder, texts, force)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as unfinished:
        for path, _ in (*rows["train"], *rows["val"]):
            file = Path(unfinished, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.round(data.images[int(file.stem)] * (255 / 16)).astype(np.uint8))  # of 0 to 16
            image.resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BICUBIC).save(file)
        for split in SPLITS:
            shutil.copytree(Path(unfinished, split), folder / split, copy_function=os.replace, dirs_exist_ok=True)
    write_texts(folder, texts)
    return f"{len(rows['train'])} digits to train on and {len(rows['val'])} to validate are in {folder}"


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
    """Write train/<class>/NNN.jpg and val/<class>/NNN.jpg, always the same cuts of two photographs. What was done, in a
    sentence.

    Images to train on are from the left 60 % of the place where the class is seen, others from right of that. Raises
    UserError where scikit-learn is missing or the folder is not empty.
    """
    refuse_filled(folder, force)
    photos = {name: Image.fromarray(photo) for name, photo in photographs().items()}
    for path, photo, box in cuts():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        photos[photo].crop(box).save(file, quality=95)
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
            top, left = rng.randint(photo.shape[0] - height + 1), rng.randint(photo.shape[1] - width + 1)
            file = folder / split / f"class_{i % len(photos)}" / f"{i:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[top : top + height, left : left + width]).save(file, quality=97)


def photographs() -> dict[str, np.ndarray]:
    """scikit-learn's two photographs, uint8 [427, 640, 3], by the names of their files. Raises UserError without it."""
    data = _datasets().load_sample_images()
    return {os.path.basename(file): image for file, image in zip(data.filenames, data.images)}


def _datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError("these images come with scikit-learn: pip install '.[demo]' in the clone") from None
    return datasets


def write_lists(folder: Path, *, force: bool = False) -> str:
    """Write the lists of the images in train/<class>/ and val/<class>/, and the names of the classes. What was done, in
    a sentence.

    Raises MissingFileError or UserError where there are no such folders, or lists of other content.
    """
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    if not splits:
        raise MissingFileError(f"{folder} has neither a folder train nor a folder val")
    classes = class_folders(folder / splits[0])
    texts = {CLASS_NAMES_FILE: class_names_text(classes)}
    counts = []
    for split in splits:
        source = FolderSource(folder / split, classes, classes)
        rows = [(f"{split}/{source.relative_path(i)}", source.label(i)) for i in range(len(source))]
        texts[f"{split}_list.txt"] = list_text(rows)
        counts.append(f"{len(rows)} images of {split}")
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
        texts[f"{split}_list.txt"] = list_text([(path, source.label(i)) for path, i in zip(paths, chosen.tolist())])
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


def write_zips(folder: Path, output: Path, *, force: bool = False) -> Iterator[tuple[int, int]]:
    """Write <split>.zip, its members stored, and <split>_map.txt for the images of every split, and class_names.txt.

    Gives (images done, of so many) as it goes. A zip file that is there with the same members stays; the maps come
    last, so that what was interrupted has none. Raises MissingFileError or UserError where there are no images, an
    image cannot be read, or there are files of other content.
    """
    sources = {split: source for split in SPLITS for source in _file_sources(folder, split)}
    if not sources:
        raise MissingFileError(f"{folder} has no folders train and val, and no train_list.txt and val_list.txt")
    output.mkdir(parents=True, exist_ok=True)
    # Members lie below where they are unpacked: as tar does, a list's absolute paths lose their first slash.
    names = {
        split: [source.relative_path(i).lstrip("/") for i in range(len(source))] for split, source in sources.items()
    }
    texts: dict[str, str] = {}
    for split, source in sources.items():
        texts[CLASS_NAMES_FILE] = class_names_text(source.class_names)
        texts[f"{split}_map.txt"] = list_text([(name, source.label(i)) for i, name in enumerate(names[split])], "\t")
    _refuse_other(output, texts, force)
    total, before = sum(map(len, names.values())), 0
    for split, source in sources.items():
        if force or not _holds(output / f"{split}.zip", names[split]):
            for done in _write_zip(output / f"{split}.zip", names[split], source):
                yield before + done, total
        before += len(source)
        yield before, total
    write_texts(output, texts)


def _file_sources(folder: Path, split: str) -> Iterator[ListSource | FolderSource]:
    """The images of a split as files, if it has any."""
    if (folder / f"{split}_list.txt").is_file():
        source = open_imagenet(folder, split)
        assert isinstance(source, ListSource), "there are lists"
        yield source
    elif (folder / split).is_dir():
        yield open_folder(folder, split)


def _holds(path: Path, names: Sequence[str]) -> bool:
    """Whether a zip file is there, with these members. Raises UserError where it has others."""
    if not path.exists():
        return False
    if list(ZipArchive(path).names) != [os.fsencode(name) for name in names]:
        raise UserError(f"{path} is there already, with other members: name another folder, or -force to replace it")
    return True


def _write_zip(path: Path, names: Sequence[str], source: Source) -> Iterator[int]:
    """Write all images under these names, stored, as they are compressed already; give the number of those done."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with zipfile.ZipFile(unfinished, "w") as file:
            for i, name in enumerate(names):
                member = zipfile.ZipInfo(name)  # of 1980: the same images always make the same file
                member.external_attr = 0o644 << 16
                file.writestr(member, source.read(i))
                yield i + 1
        os.replace(unfinished, path)
    except UnicodeEncodeError:
        raise UserError(f"{name!r}: names in a zip file are UTF-8; rename the file") from None
    finally:
        unfinished.unlink(missing_ok=True)


def list_text(rows: Sequence[tuple[str, int]], separator: str = " ") -> str:
    """A list file, of paths and labels. Raises UserError where a path cannot stand in one."""
    for path, _ in rows:
        if "\n" in path or "\r" in path or path != path.strip():
            raise UserError(f"{path!r}: a path in a list has no line break, and no space at its ends; rename the file")
    return "".join(f"{path}{separator}{label}\n" for path, label in rows)


def refuse_filled(folder: Path, force: bool) -> None:
    """Raises UserError where a folder is not empty."""
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name another folder, or -force to write into it")


def _refuse_other(folder: Path, texts: dict[str, str], force: bool) -> None:
    """Raises UserError where one of the files `texts`, content by name, is there with other content."""
    for name, text in texts.items():
        file = folder / name
        if not force and file.exists() and file.read_bytes() != _encoded(text):
            raise UserError(
                f"{file} is there already, with other content: name another folder, or -force to replace it"
            )


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write files, content by name, each at once or not at all."""
    for name, text in texts.items():
        write_bytes(folder / name, _encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names that are no UTF-8 stay as they are


def check_image(source: Source, i: int) -> str:
    """Decode an image, as training does it: nothing is wrong. Raises UserError where something is."""
    source.image(i)
    return ""


def look_at_images(source: Source, look: Callable[[Source, int], Any], *, num_workers: int) -> Iterator[Any]:
    """What `look` makes of every image, in processes: its value, or the message of its UserError. Raises UserError
    where a process dies.
    """
    if num_workers == 0:
        yield from (_seen(source, look, i) for i in range(len(source)))
        return
    context = multiprocessing.get_context("fork")
    done = 0
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _keep, (source, look)) as pool:
        try:
            for seen in pool.map(_look, range(len(source)), chunksize=_IMAGES_PER_TASK):
                done += 1
                yield seen
        except BrokenProcessPool:
            raise UserError(
                f"a process that decodes images has died at one of the {num_workers * _IMAGES_PER_TASK} images from "
                f"{source.name(min(done, len(source) - 1))} on, often as memory ran out: use fewer -workers"
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
