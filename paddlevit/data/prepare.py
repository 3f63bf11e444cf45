"""Writes data sets in the layouts that the sources read: the demo's digits, list files and zip files from folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from paddlevit.data.class_names import CLASS_NAMES_FILE
from paddlevit.data.layouts import SPLITS, open_folder, open_imagenet
from paddlevit.data.sources import FolderSource, ListSource, class_folders
from paddlevit.data.ziparchive import ZipArchive
from paddlevit.data.zipwriter import write_zip
from paddlevit.errors import MissingFileError, UserError

_DIGIT_SIDE = 32
_NUM_VAL_DIGITS = 360
_SPLIT_SEED = 0


def write_digits(folder: Path, *, force: bool = False) -> str:
    """Write train/<digit>/NNNN.png and val/<digit>/NNNN.png, 32 x 32 and grey, and their lists; NNNN is the image's
    number in scikit-learn's data set. What was done, in a sentence.

    The split is always the same, 1,437 to 360 images with equal shares of each digit. The lists come last, so that
    what was interrupted has none. Raises UserError where scikit-learn is missing or the folder has other lists.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the digits come with scikit-learn: pip install '.[demo]' in the clone") from None
    data = load_digits()
    in_val = digits_in_val(data.target)
    rows: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    images = []
    for i, (image, label) in enumerate(zip(data.images, data.target)):
        split = SPLITS[int(in_val[i])]
        path = f"{split}/{label}/{i:04d}.png"
        rows[split].append((path, int(label)))
        images.append((path, image))
    texts = {f"{split}_list.txt": _list_text(rows[split]) for split in SPLITS}
    texts = {CLASS_NAMES_FILE: "".join(f"{digit}\n" for digit in range(10)), **texts}
    _refuse_other(folder, texts, force)
    _write_images(folder, images)
    _write_texts(folder, texts)
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


def write_lists(folder: Path, *, force: bool = False) -> str:
    """Write the lists of the images in train/<class>/ and val/<class>/, and the names of the classes. What was done, in
    a sentence.

    Raises MissingFileError or UserError where there are no such folders, or lists of other content.
    """
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    if not splits:
        raise MissingFileError(f"{folder} has neither a folder train nor a folder val")
    classes = class_folders(folder / splits[0])
    texts = {CLASS_NAMES_FILE: "".join(f"{name}\n" for name in classes)}
    counts = []
    for split in splits:
        source = FolderSource(folder / split, classes, classes)
        rows = [(f"{split}/{source.relative_path(i)}", source.label(i)) for i in range(len(source))]
        texts[f"{split}_list.txt"] = _list_text(rows)
        counts.append(f"{len(rows)} images of {split}")
    _refuse_other(folder, texts, force)
    _write_texts(folder, texts)
    return f"listed {' and '.join(counts)}, {len(classes)} classes, in {folder}"


def write_zips(folder: Path, output: Path, *, force: bool = False) -> Iterator[tuple[int, int]]:
    """Write <split>.zip, its members stored, and <split>_map.txt for the images of every split, and class_names.txt.

    Gives (images done, of so many) as it goes. An interrupted run goes on where it was; the maps come last, so that
    what was interrupted has none. Raises MissingFileError or UserError where there are no images, an image cannot be
    read, or there are files of other content.
    """
    sources = {split: source for split in SPLITS for source in _file_sources(folder, split)}
    if not sources:
        raise MissingFileError(f"{folder} has no folders train and val, and no train_list.txt and val_list.txt")
    output.mkdir(parents=True, exist_ok=True)
    names = {split: [source.relative_path(i) for i in range(len(source))] for split, source in sources.items()}
    texts: dict[str, str] = {}
    for split, source in sources.items():
        texts[CLASS_NAMES_FILE] = "".join(f"{name}\n" for name in source.class_names)
        texts[f"{split}_map.txt"] = _list_text([(name, source.label(i)) for i, name in enumerate(names[split])], "\t")
    _refuse_other(output, texts, force)
    total, before = sum(map(len, names.values())), 0
    for split, source in sources.items():
        if force or not _holds(output / f"{split}.zip", names[split]):
            for done in write_zip(output / f"{split}.zip", names[split], source.read):
                yield before + done, total
        before += len(source)
        yield before, total
    _write_texts(output, texts)


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
    members, _ = ZipArchive(path).directory()
    if list(members) != [os.fsencode(name) for name in names]:
        raise UserError(f"{path} is there already, with other members: name another folder, or -force to replace it")
    return True


def _list_text(rows: Sequence[tuple[str, int]], separator: str = " ") -> str:
    for path, _ in rows:
        if "\n" in path:
            raise UserError(f"{path!r}: a path with a line break cannot stand in a list; rename the file")
    return "".join(f"{path}{separator}{label}\n" for path, label in rows)


def _refuse_other(folder: Path, texts: dict[str, str], force: bool) -> None:
    for name, text in texts.items():
        file = folder / name
        if not force and file.exists() and file.read_bytes() != _encoded(text):
            raise UserError(
                f"{file} is there already, with other content: name another folder, or -force to replace it"
            )


def _write_images(folder: Path, images: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write 8 x 8 digits with values 0 to 16, first beside their places and then into them."""
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for path, image in images:
        grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
        file = unfinished / path
        file.parent.mkdir(parents=True, exist_ok=True)
        grey.resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BICUBIC).save(file)
    for path, _ in images:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(unfinished / path, folder / path)
    shutil.rmtree(unfinished)


def _write_texts(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_bytes(_encoded(text))
        os.replace(unfinished, folder / name)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names that are no UTF-8 stay as they are
