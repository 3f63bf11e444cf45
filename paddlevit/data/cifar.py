"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official archives for Python, without executing pickles."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from paddlevit.data.index import read_file
from paddlevit.data.sources import Source
from paddlevit.errors import MissingFileError, UserError
from paddlevit.safe_pickle import LazyArray, Refused, Unpickler


class _Layout(NamedTuple):
    archive: str
    folder: str
    names_file: str
    prefix: str  # of the fields with labels and their names


_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_LAYOUTS = {
    "cifar10": _Layout("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta", ""),
    "cifar100": _Layout("cifar-100-python.tar.gz", "cifar-100-python", "meta", "fine_"),
}
_FILES = {
    ("cifar10", "train"): [f"data_batch_{i}" for i in range(1, 6)],
    ("cifar10", "val"): ["test_batch"],
    ("cifar100", "train"): ["train"],
    ("cifar100", "val"): ["test"],
}


class CifarSource(Source):
    """Images of 32 x 32 pixels that are held in memory, 3 kB each."""

    encoded = False

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, place: str) -> None:
        """`pixels` uint8 [N, 32, 32, 3]; `place`: what messages say of where they came from."""
        self.class_names = class_names
        self._pixels = pixels
        self.labels = labels
        self._place = place

    def read(self, i: int) -> bytes:
        return self._pixels[i].tobytes()

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self._pixels[i])

    def name(self, i: int) -> str:
        return f"{self._place}, image {i}"


def open_cifar(path: Path, dataset: str, *, split: str) -> CifarSource:
    """The images of a split ('train' or 'val') of 'cifar10' or 'cifar100'.

    `path` is the official archive, or a folder: the unpacked archive, or one that holds it, packed or unpacked.
    """
    layout, files = _LAYOUTS[dataset], _FILES[dataset, split]
    place, wanted = _find(path, layout), [layout.names_file, *files]
    contents = {name: read_file(place / name) for name in wanted} if place.is_dir() else _read_archive(place, wanted)
    (names,) = _fields(contents[layout.names_file], place / layout.names_file, [f"{layout.prefix}label_names"])
    if not isinstance(names, list):
        raise UserError(f"{place / layout.names_file} is damaged: it does not hold a list of names")
    class_names = [str(_text(name)) for name in names]
    labels_field, num_classes = f"{layout.prefix}labels", len(class_names)
    parts = [_images(contents[name], place / name, labels_field, num_classes) for name in files]
    pixels, labels = map(np.concatenate, zip(*parts))
    return CifarSource(pixels, labels, class_names, place=f"{place}, {split}")


def _find(path: Path, layout: _Layout) -> Path:
    """The folder of the data set's files, or the archive with them."""
    if path.is_file():
        return path
    for folder in (path, path / layout.folder):
        if (folder / layout.names_file).is_file():
            return folder
    if (path / layout.archive).is_file():
        return path / layout.archive
    wanted = f"{path / layout.names_file}, {path / layout.folder / layout.names_file} or {path / layout.archive}"
    raise MissingFileError(f"there is no {wanted}: name its folder with -data_path; {layout.archive} is at {_HOME}")


def _read_archive(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if name in names and member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file"
                    contents[name] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{archive} is not a complete archive: {error or type(error).__name__}") from None
    missing = [name for name in names if name not in contents]
    if missing:
        raise MissingFileError(f"{archive} has no file {missing[0]}")
    return contents


def _images(content: bytes, path: Path, labels_field: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 32, 32, 3] and labels int32 [N] of a file; each image is stored as 3 planes."""
    array, labels = _fields(content, path, ["data", labels_field])
    if not isinstance(array, np.ndarray) or not isinstance(labels, list):
        raise UserError(f"{path} is damaged: it does not hold an array of images and a list of labels")
    if not all(isinstance(label, int) and 0 <= label < num_classes for label in labels):
        raise UserError(f"{path}: a label is not a whole number from 0 to {num_classes - 1}")
    if not labels or array.nbytes != 3072 * len(labels):
        raise UserError(f"{path} has {len(labels)} labels, but the pixels of {array.nbytes / 3072:g} images")
    planes = array.view(np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(labels, dtype=np.int32)


def _fields(content: bytes, path: Path, keys: Sequence[str]) -> list[Any]:
    """The entries `keys` of the dictionary that is pickled in `content`, arrays read."""
    try:
        entries = {_text(key): value for key, value in Unpickler(content).load().items()}
        return [value.read() if isinstance(value, LazyArray) else value for value in map(entries.__getitem__, keys)]
    except Refused as error:
        raise UserError(f"{path} {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is damaged: {type(error).__name__} {error}") from None


def _text(value: Any) -> Any:
    """A string of Python 2, which has become bytes where somebody has pickled it again."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
