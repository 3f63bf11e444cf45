"""Where images and labels come from: list files, zip files with a map, folders.

Every source reads safely in many processes, holds its paths and labels in arrays (index.py) and names an image as a
person would look for it.
"""

from __future__ import annotations

import functools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from paddlevit.data.array_cache import Arrays, cached_arrays
from paddlevit.data.decode import decode
from paddlevit.data.index import Index, index_of, read_list
from paddlevit.data.ziparchive import Members, ZipArchive
from paddlevit.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

# In a list of up to this many files, all are looked for when it is opened; in a longer one, each when it is read.
_MAX_CHECKED_FILES = 20_000


class Source(ABC):
    """N images with labels from 0 to num_classes - 1."""

    class_names: Sequence[str]
    encoded = True  # what `read` gives is an image file

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
        return decode(self.read(i), self.name(i))

    def label(self, i: int) -> int:
        """Class of the i-th image."""
        return int(self.labels[i])

    def label_place(self, i: int) -> str:
        """Where the label of the i-th image is written."""
        return self.name(i)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes the data set has, in all its splits together."""
        return len(self.class_names)


class ListSource(Source):
    """Images named, with their labels, by a list file; paths are relative to `root`.

    Raises MissingFileError where a file is missing and the list is short enough to look for all of them.
    """

    def __init__(self, root: Path, list_file: Path, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._root = os.fsencode(root)
        self._list_file = list_file
        self._index = read_list(list_file)
        if len(self) <= _MAX_CHECKED_FILES:
            for i in range(len(self)):
                if not os.path.exists(self._path(i)):
                    raise self._missing(i)

    @property
    def labels(self) -> np.ndarray:
        return self._index.labels

    def name(self, i: int) -> str:
        return os.fsdecode(self._path(i))

    def relative_path(self, i: int) -> str:
        """Path of the i-th image below the root."""
        return os.fsdecode(self._index.path(i))

    def label_place(self, i: int) -> str:
        return f"{self._list_file}, line {self._index.line(i)}"

    def read(self, i: int) -> bytes:
        try:
            return _read_file(self._path(i))
        except FileNotFoundError:
            raise self._missing(i) from None

    def _path(self, i: int) -> bytes:
        return os.path.join(self._root, self._index.path(i))

    def _missing(self, i: int) -> MissingFileError:
        return MissingFileError(f"{self.label_place(i)}: there is no file {self.name(i)}")


class ZipSource(Source):
    """Images that are members of a zip file, named, with their labels, by a map file.

    Raises UserError where the file is no zip, or a member that the map names is not in it.
    """

    def __init__(self, zip_file: Path, map_file: Path, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._map_file = map_file
        self._index = read_list(map_file)
        self._archive = ZipArchive(zip_file)
        self._archive.places = cached_arrays("zip", [zip_file, map_file], self._mapped)

    def _mapped(self) -> Arrays:
        """Where the map's members are."""
        members, places = self._archive.directory()
        found = self._find(members)
        return {name: array[found] for name, array in places.items()}

    def _find(self, members: Members) -> np.ndarray:
        """Numbers [N] of the map's members; its paths may be relative to the zip's one top folder."""
        index = self._index
        prefix = b"" if index.path(0) in members else members.top_folder()
        found = np.fromiter((members.get(prefix + index.path(i), -1) for i in range(len(index))), np.int64, len(index))
        if (found < 0).any():
            i = int((found < 0).argmax())
            raise UserError(f"{self.label_place(i)}: '{os.fsdecode(index.path(i))}' is not in {self._archive.path}")
        return found

    @property
    def labels(self) -> np.ndarray:
        return self._index.labels

    def name(self, i: int) -> str:
        return os.path.join(self._archive.path, os.fsdecode(self._index.path(i)))

    def label_place(self, i: int) -> str:
        return f"{self._map_file}, line {self._index.line(i)}"

    def read(self, i: int) -> bytes:
        return self._archive.read(i, self.name(i))


class FolderSource(Source):
    """Images in one folder per class; a class's label is its folder's place in `folders`.

    Raises UserError where there is a folder that is not in `folders`, or one without images.
    """

    def __init__(self, root: Path, folders: Sequence[str], class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._root = root
        self._root_bytes = os.fsencode(root)
        self._folders = folders
        own = class_folders(root)
        if not own:
            raise UserError(f"{root} has no class folders: images lie in {root}/<class>/")
        unknown = sorted(set(own) - set(folders))
        if unknown:
            raise UserError(f"{root / unknown[0]}: the images to train on have no class folder '{unknown[0]}'")

    @functools.cached_property
    def _index(self) -> Index:
        """Made when it is first needed: who only asks for the number of classes need not wait for it."""
        paths: list[bytes] = []
        labels: list[int] = []
        skipped = 0
        for label, name in enumerate(self._folders):
            folder = self._root / name
            if not folder.is_dir():
                continue  # a class that has no validation images
            images, others = _image_files(folder)
            paths += [os.path.join(os.fsencode(name), image) for image in images]
            labels += [label] * len(images)
            skipped += others
        if skipped:
            logger.warning("%s: %d files are left out, as they are no JPEG or PNG", self._root, skipped)
        return index_of(paths, labels)

    @property
    def labels(self) -> np.ndarray:
        return self._index.labels

    def name(self, i: int) -> str:
        return str(self._root / self.relative_path(i))

    def relative_path(self, i: int) -> str:
        """Path of the i-th image below the root."""
        return os.fsdecode(self._index.path(i))

    def read(self, i: int) -> bytes:
        try:
            return _read_file(os.path.join(self._root_bytes, self._index.path(i)))
        except FileNotFoundError:
            raise MissingFileError(f"there is no file {self.name(i)} any more") from None


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> tuple[list[bytes], int]:
    """The sorted names of JPEG and PNG files in a class's folder, and how many other entries it has."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    images = sorted(os.fsencode(name) for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    if not images:
        raise UserError(f"{folder} holds no JPEG or PNG file: fill it, or remove it")
    return images, len(names) - len(images)


def _read_file(path: bytes) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{os.fsdecode(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None
