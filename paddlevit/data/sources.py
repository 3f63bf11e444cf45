"""Where images and labels come from: list files, zip files with a map, folders.

Every source reads safely in many processes, holds its paths and labels in arrays (index.py) and names an image as a
person would look for it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from paddlevit.data.decode import AS_PUBLISHED, KNOWN, decode, is_image
from paddlevit.data.index import CLASS_NAMES_FILE, Index, index_of, read_list, stamp
from paddlevit.data.ziparchive import ZipArchive, top_folder
from paddlevit.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

# In a list of up to this many files, all are looked for when it is opened; in a longer one, each when it is read.
_MAX_CHECKED_FILES = 20_000
_MOST_NAMED = 3  # files in a message


class Source(ABC):
    """N images with labels from 0 to num_classes - 1."""

    class_names: Sequence[str]
    encoded = True  # what `read` gives is an image file
    decoding = AS_PUBLISHED

    @property
    @abstractmethod
    def labels(self) -> np.ndarray:
        """Labels of all images, whole numbers [N]."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """What is stored of the i-th image. Raises UserError, naming it, where it cannot be read."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Path of the i-th image, for messages."""

    def image(self, i: int) -> Image.Image:
        """The i-th image in mode RGB. Raises UserError, naming it, where it cannot be read."""
        return decode(self.read(i), self.name(i), self.decoding)

    def label(self, i: int) -> int:
        """Class of the i-th image."""
        return int(self.labels[i])

    def label_place(self, i: int) -> str:
        """Where the label of the i-th image is written."""
        return self.name(i)

    def relabel(self, labels: np.ndarray) -> None:
        """Give all images other labels [N]."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes the data set has, in all its splits together."""
        return len(self.class_names)


class _IndexedSource(Source):
    """Images whose paths, below `root`, and labels are in an index."""

    _index: Index
    _root: Path

    @property
    def labels(self) -> np.ndarray:
        return self._index.labels

    def relabel(self, labels: np.ndarray) -> None:
        self._index = dataclasses.replace(self._index, labels=labels)

    def name(self, i: int) -> str:
        return os.path.join(self._root, self.relative_path(i))

    def relative_path(self, i: int) -> str:
        """Path of the i-th image below the root."""
        return os.fsdecode(self._index.path(i))


class ListSource(_IndexedSource):
    """Images named, with their labels, by a list file; paths are relative to `root`.

    Raises MissingFileError where a file is missing and the list is short enough to look for all of them.
    """

    def __init__(self, root: Path, list_file: Path, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._root = root
        self._list_file = list_file
        self._index = read_list(list_file)
        if len(self) <= _MAX_CHECKED_FILES:
            for i in range(len(self)):
                if not os.path.exists(self.name(i)):
                    self._found(i)

    def label_place(self, i: int) -> str:
        return f"{self._list_file}, line {self._index.line(i)}"

    def read(self, i: int) -> bytes:
        try:
            return _read_file(self.name(i))
        except FileNotFoundError:
            return _read_file(self._found(i))

    def _found(self, i: int) -> str:
        """Where the file of the i-th image is, if it is not where the list says."""
        for other in _other_forms(self._index.path(i)):
            path = os.path.join(self._root, os.fsdecode(other))
            if os.path.exists(path):
                return path
        raise MissingFileError(f"{self.label_place(i)}: there is no file {self.name(i)}")


class ZipSource(_IndexedSource):
    """Images that are members of a zip file, named, with their labels, by a map file.

    Raises UserError where the file is no zip, or a member that the map names is not in it.
    """

    def __init__(self, zip_file: Path, map_file: Path, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._root = zip_file
        self._map_file = map_file
        self._index = read_list(map_file)
        self._archive = _mapped_archive(zip_file, map_file, (stamp(zip_file), stamp(map_file)))

    def label_place(self, i: int) -> str:
        return f"{self._map_file}, line {self._index.line(i)}"

    def read(self, i: int) -> bytes:
        return self._archive.read(i, self.name(i))


@functools.lru_cache(maxsize=2)  # one run asks for both splits several times
def _mapped_archive(zip_file: Path, map_file: Path, _: object) -> ZipArchive:
    """The archive with the map's members, in its order; paths may be relative to the zip's one top folder."""
    index, archive = read_list(map_file), ZipArchive(zip_file)
    names = archive.names
    top = b"" if index.path(0) in names else top_folder(names)
    found = np.fromiter((names.get(top + index.path(i), -1) for i in range(len(index))), np.int64, len(index))
    for i in np.flatnonzero(found < 0).tolist():
        others = [folder + other for other in _other_forms(index.path(i)) for folder in (b"", top)]
        found[i] = next((names[other] for other in others if other in names), -1)
        if found[i] < 0:
            raise UserError(f"{map_file}, line {index.line(i)}: '{os.fsdecode(index.path(i))}' is not in {zip_file}")
    archive.keep(found)
    return archive


class FolderSource(_IndexedSource):
    """Images in one folder per class, and in folders of it; a class's label is its folder's place in `folders`.

    Raises UserError where there is a folder that is not in `folders`, or one without images.
    """

    def __init__(self, root: Path, folders: Sequence[str], class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._root = root
        self._folders = folders
        own = class_folders(root)
        if not own:
            raise UserError(f"{root} has no class folders: images lie in {root}/<class>/")
        unknown = sorted(set(own) - set(folders))
        if unknown:
            raise UserError(f"{root / unknown[0]}: the images to train on have no class folder '{unknown[0]}'")

    @functools.cached_property
    def _index(self) -> Index:  # type: ignore[override]
        """Made when it is first needed: who only asks for the number of classes need not wait for it."""
        paths: list[bytes] = []
        labels: list[int] = []
        left_out: list[bytes] = []
        for label, name in enumerate(self._folders):
            if not (self._root / name).is_dir():
                continue  # a class that has no validation images
            images, others = _files_below(self._root / name)
            if not images:
                raise UserError(f"{self._root / name} holds no images ({KNOWN}): fill it, or remove it")
            folder = os.fsencode(name) + b"/"
            paths += [folder + path for path in images]
            labels += [label] * len(images)
            left_out += [folder + path for path in others]
        _say_left_out(self._root, left_out)
        return index_of(paths, labels)

    def read(self, i: int) -> bytes:
        try:
            return _read_file(self.name(i))
        except FileNotFoundError:
            raise MissingFileError(f"there is no file {self.name(i)} any more") from None


class FileSource(Source):
    """Images by their paths. Nothing is known of their classes: every label is 0."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.class_names: list[str] = []
        self._paths = paths

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self._paths), np.int64)

    def label(self, i: int) -> int:
        return 0

    def name(self, i: int) -> str:
        return self._paths[i]

    def read(self, i: int) -> bytes:
        name = self._paths[i]
        if os.path.isdir(name):
            raise UserError(f"the folder {name} holds no images ({KNOWN})")
        try:
            return _read_file(name)
        except FileNotFoundError:
            raise MissingFileError(f"there is no file {name}") from None


@functools.cache
def say_once(message: str) -> None:
    """Warn in the log; a run opens its data several times."""
    logger.warning("%s", message)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`; hidden ones, and folds that a split has left there, are none."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if not (folder / name / CLASS_NAMES_FILE).exists()]


def find_images(named: Iterable[str]) -> Iterator[str]:
    """The files that are named, and, sorted, the images in the folders that are, and below them.

    A folder without images is given as if it were a file, so that reading it fails.
    """
    for name in named:
        if not os.path.isdir(name):
            yield name
            continue
        images, others = _files_below(Path(name))
        _say_left_out(Path(name), others)
        yield from (os.path.join(name, os.fsdecode(path)) for path in images) if images else [name]


def _files_below(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Paths below `folder` of images, sorted, and of other files; nothing of hidden folders."""
    images: list[bytes] = []
    others: list[bytes] = []
    top = os.fsencode(folder)
    for parent, folders, files in os.walk(top, followlinks=True):
        here = os.path.realpath(parent) + b"/"
        folders[:] = [
            name
            for name in folders
            if not name.startswith(b".") and not here.startswith(os.path.realpath(os.path.join(parent, name)) + b"/")
        ]  # a link that leads back would never end
        prefix = parent[len(top) + 1 :] + b"/" if len(parent) > len(top) else b""
        for name in files:
            (images if is_image(name) else others).append(prefix + name)
    return sorted(images), sorted(others)


def _say_left_out(root: Path, files: Sequence[bytes]) -> None:
    if files:
        kinds = collections.Counter(map(_kind, files))
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        some = ", ".join(os.fsdecode(file) for file in files[:_MOST_NAMED])
        say_once(f"{root}: skipped {len(files)} files that are no {KNOWN}: {counted} ({some})")


def _kind(file: bytes) -> str:
    name = os.path.basename(file)
    return "hidden" if name.startswith(b".") else os.fsdecode(os.path.splitext(name)[1].lower()) or "without suffix"


def _other_forms(path: bytes) -> list[bytes]:
    """How another system may have written a path: letters with their accents apart or in one, other slashes."""
    text = os.fsdecode(path)
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    return [os.fsencode(form.replace("\\", "/")) for form in forms]


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
