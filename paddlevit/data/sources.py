"""Where images and labels come from: list files, zip files with a map, folders of classes.

Every source reads safely in many processes, and names an image as a person would look for it.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from paddlevit.data.decode import AS_PUBLISHED, KNOWN, decode, is_image
from paddlevit.data.index import (
    CLASS_NAMES_FILE,
    Index,
    folder_name,
    index_of,
    plain_name,
    read_class_names,
    read_file,
    read_list,
    readable,
    refuse_namesakes,
    stamp,
)
from paddlevit.data.ziparchive import ZipArchive
from paddlevit.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

_MAX_CHECKED_FILES = 20_000  # of a list, when it is opened; those of a longer one each when it is read
_MOST_NAMED = 3  # files or folders in a message
SPLITS = ("train", "val")


class Source(ABC):
    """N images with labels from 0 to num_classes - 1."""

    class_names: Sequence[str]  # of all splits together
    encoded = True  # what `read` gives is an image file
    decoding = AS_PUBLISHED
    labels: np.ndarray  # of all images, whole numbers [N]

    @abstractmethod
    def read(self, i: int) -> bytes:
        """What is stored of the i-th image. Raises UserError where it cannot be read."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Path of the i-th image, for messages."""

    def image(self, i: int) -> Image.Image:
        """The i-th image in mode RGB."""
        return decode(self.read(i), self.name(i), self.decoding)

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
        return len(self.class_names)


class _IndexedSource(Source):
    """Images whose paths, below `root`, and labels are in an index."""

    _index: Index
    _root: Path

    @functools.cached_property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        return self._index.labels

    def name(self, i: int) -> str:
        return os.path.join(self._root, self.relative_path(i))

    def relative_path(self, i: int) -> str:
        """Path of the i-th image below the root."""
        return os.fsdecode(self._index.path(i))

    def relative_paths(self) -> list[str]:
        """Those of all images."""
        return [self.relative_path(i) for i in range(len(self))]

    def read(self, i: int) -> bytes:
        return read_file(self.name(i))


class ListSource(_IndexedSource):
    """Images named, with their labels, by a list file; paths are relative to `root`."""

    def __init__(self, root: Path, list_file: Path, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._root = root
        self._list_file = list_file
        self._index = read_list(list_file)
        if b".." in self._index.text:  # absolute paths are meant as they are
            for i in range(len(self)):
                if os.path.normpath(self._index.path(i).replace(b"\\", b"/")).split(b"/")[0] == b"..":
                    raise UserError(f"{self.label_place(i)}: '{self.relative_path(i)}' leads out of {self._root}")
        self._find_files()

    def _find_files(self) -> None:
        if len(self) <= _MAX_CHECKED_FILES:
            for i in range(len(self)):
                if not os.path.exists(self.name(i)):
                    self._found(i)

    def label_place(self, i: int) -> str:
        return f"{self._list_file}, line {self._index.line(i)}"

    def read(self, i: int) -> bytes:
        try:
            return super().read(i)
        except MissingFileError:
            return read_file(self._found(i))

    def _found(self, i: int) -> str:
        """Where the file of the i-th image is, if it is not where the list says."""
        for other in _other_forms(self._index.path(i)):
            path = os.path.join(self._root, os.fsdecode(other))
            if os.path.exists(path):
                return path
        raise MissingFileError(f"{self.label_place(i)}: there is no file {self.name(i)}")


class ZipSource(ListSource):
    """Images that are members of a zip file, named, with their labels, by a map file."""

    def _find_files(self) -> None:
        self._archive = _mapped_archive(self._root, self._list_file, (stamp(self._root), stamp(self._list_file)))

    def read(self, i: int) -> bytes:
        return self._archive.read(i, self.name(i))


@functools.lru_cache(maxsize=2)  # one run asks for both splits several times
def _mapped_archive(zip_file: Path, map_file: Path, _: object) -> ZipArchive:
    """The archive with the map's members, in its order; paths may be relative to the zip's one top folder."""
    index, archive = read_list(map_file), ZipArchive(zip_file)
    names = archive.names
    tops = {name[: name.find(b"/") + 1] for name in names} - {b"__MACOSX/"}  # that macOS adds for itself
    top = tops.pop() if index.path(0) not in names and len(tops) == 1 else b""
    found = np.fromiter((names.get(top + index.path(i), -1) for i in range(len(index))), np.int64, len(index))
    for i in np.flatnonzero(found < 0).tolist():
        others = [folder + other for other in _other_forms(index.path(i)) for folder in (b"", top)]
        found[i] = next((names[other] for other in others if other in names), -1)
        if found[i] < 0:
            raise UserError(f"{map_file}, line {index.line(i)}: '{os.fsdecode(index.path(i))}' is not in {zip_file}")
    archive.keep(found)
    return archive


class FolderSource(_IndexedSource):
    """Images in one folder per class, and in folders of it; a class's label is its folder's place in `folders`."""

    def __init__(self, root: Path, folders: Sequence[str], class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._root = root
        own = set(class_folders(root))
        # One split may have come from macOS, which takes letters and their accents apart.
        forms = {plain_name(name): name for name in own}
        self._folders = [forms.get(plain_name(name), name) for name in folders]
        if not own:
            raise UserError(f"{root} has no class folders: images lie in {root}/<class>/")
        unknown = sorted(own - set(self._folders))
        if unknown:
            raise UserError(f"{root / unknown[0]}: the images to train on have no class folder '{unknown[0]}'")
        name, count = collections.Counter(name for name in self._folders if name in own).most_common(1)[0]
        if count > 1:
            raise UserError(f"{root / name}: {count} classes are called as this folder is")

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


def open_imagenet(root: Path, split: str) -> Source:
    """The images of a split ('train' or 'val') of the data set in the folder `root`: list files are taken before zip
    files, and these before folders.
    """
    if not root.is_dir():
        named = f"{root} (it is a file)" if root.is_file() else root
        raise MissingFileError(f"there is no data folder {named}: name it with -data_path (DATA.DATA_PATH)")
    for kind in ("list", "map"):
        files = {name: root / f"{name}_{kind}.txt" for name in SPLITS}
        there = [file for file in files.values() if file.is_file()]
        if there and files[split] not in there:
            raise MissingFileError(f"{files[split]} is missing, though {there[0]} is there")
        if there:
            names = _names_of_lists(root, there)
            if kind == "list":
                return ListSource(root, files[split], names)
            return ZipSource(root / f"{split}.zip", files[split], names)
    if any((root / name).is_dir() for name in SPLITS):
        return open_folder(root, split)
    raise MissingFileError(_nothing_found(root, split))


def open_folder(root: Path, split: str) -> FolderSource:
    """The images of a split in folders of classes."""
    folder = root / split
    if not folder.is_dir():
        hint = f"; `paddlevit prepare split {root / 'train'} -output {root}` takes some of train" * (split == "val")
        raise MissingFileError(f"{folder} is missing: the images of a split lie in {folder}/<class>/{hint}")
    # Labels count the classes to train on. Without these there is only the split itself to go by.
    classes = class_folders(root / "train" if (root / "train").is_dir() else folder)
    file = root / CLASS_NAMES_FILE
    names = read_class_names(file)
    if names is None:
        if all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
            say_once(f"{folder}: labels follow the folders' names as text, 10 before 2; a {file.name} would order them")
        return FolderSource(folder, classes, readable([plain_name(name) for name in classes], root))
    by_name = {plain_name(name): name for name in classes}
    unknown = [name for name in by_name if name not in names]
    if unknown and len(unknown) < len(classes):
        raise UserError(f"{file} has no class '{unknown[0]}', though there is a folder of that name")
    if unknown and len(names) != len(classes):
        raise UserError(f"{file} has {len(names)} names, but there are {len(classes)} class folders")
    # Where no folder is called by a name, names are in the order of the folders.
    return FolderSource(folder, classes if unknown else [by_name.get(n, n) for n in names], readable(names, root))


def _names_of_lists(root: Path, files: Sequence[Path]) -> Sequence[str]:
    """Names of the classes that any of the list files has."""
    indexes = [read_list(file) for file in files]
    where = root / CLASS_NAMES_FILE
    names: Sequence[str] | None = read_class_names(where)
    if names is None:
        used = {label for index in indexes for label, _ in index.places}
        numbers = [str(label) for label in range(max(used) + 1)]
        if unused := set(range(len(numbers))) - used:
            say_once(f"{files[0]}: no image has label {min(unused)}, of 0 to {numbers[-1]}: labels count from 0")
        by_folder = ((file, index.class_names() or []) for file, index in zip(files, indexes))
        where, names = next((found for found in by_folder if len(found[1]) == len(numbers)), (where, None))
        if names is None:
            return readable(numbers, root)
    for index, file in zip(indexes, files):
        for label, path in index.first_folders().items():
            folder = folder_name(path)
            if label < len(names) and (folder == names[label] or folder not in names):
                continue
            said = f"has '{names[label]}' for it" if label < len(names) else f"names {len(names)} classes, from 0 on"
            line = index.line(int(np.argmax(index.labels == label)))
            place = f"{file}, line {line}: label {label} for an image in folder '{folder}'"
            raise UserError(f"{place}, but {where} {said}")
    return readable(names, root)


def _nothing_found(root: Path, split: str) -> str:
    folders = [name for name in class_folders(root) if any(map(is_image, os.listdir(os.fsencode(root / name))))]
    if folders:
        some = ", ".join(folders[:_MOST_NAMED]) + ", ..." * (len(folders) > _MOST_NAMED)
        divide = f"`paddlevit prepare split {root}` divides them by writing lists, and copies nothing"
        return f"{root} has {len(folders)} class folders ({some}), but no train/ and val/: {divide}"
    return (
        f"no images to {'train on' if split == 'train' else 'validate'}: there is no {root}/{split}_list.txt (lines "
        f"'relative/path label'), no {root}/{split}_map.txt (lines 'path/in/zip<TAB>label') with {root}/{split}.zip, "
        f"and no {root}/{split}/<class>/ with images"
    )


@functools.cache
def say_once(message: str) -> None:
    """Warn in the log; a run opens its data several times."""
    logger.warning("%s", message)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`, but for hidden ones and those with lists of a split."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    names = [name for name, is_dir in found if is_dir]
    beside = [name for name, is_dir in found if not is_dir and is_image(os.fsencode(name))]
    if beside:
        say_once(f"{folder}: skipped {len(beside)} images in no class folder ({', '.join(beside[:_MOST_NAMED])})")
    lists = [name for name in names if (folder / name / f"{SPLITS[1]}_list.txt").exists()]
    if lists:
        say_once(f"{folder}: skipped {', '.join(lists)}, where lists are that a split has written")
        names = [name for name in names if name not in lists]
    # But for spaces, or for how Unicode writes a letter, two folders may have one name.
    refuse_namesakes(folder, {ascii(name): plain_name(name) for name in names}, "class folder", many=math.inf)
    return names


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
    seen = {os.path.realpath(top)}
    for parent, folders, files in os.walk(top, followlinks=True):
        here = os.path.realpath(parent) + b"/"
        shown = sorted((name for name in folders if not name.startswith(b".")), reverse=True)
        places = {os.path.realpath(os.path.join(parent, name)): name for name in shown}
        folders[:] = [name for place, name in places.items() if not (place in seen or here.startswith(place + b"/"))]
        seen.update(places)  # links between folders would repeat their images, or never end
        prefix = parent[len(top) + 1 :] + b"/" if len(parent) > len(top) else b""
        for name in files:
            (images if is_image(name) else others).append(prefix + name)
    return sorted(images), sorted(others)


def _say_left_out(root: Path, files: Sequence[bytes]) -> None:
    if files:
        counted = ", ".join(f"{n} {kind}" for kind, n in collections.Counter(map(_kind, files)).most_common())
        some = ", ".join(os.fsdecode(file) for file in files[:_MOST_NAMED])
        say_once(f"{root}: skipped {len(files)} files that are not {KNOWN}: {counted} ({some})")


def _kind(file: bytes) -> str:
    name = os.path.basename(file)
    return "hidden" if name.startswith(b".") else os.fsdecode(os.path.splitext(name)[1].lower()) or "without suffix"


def _other_forms(path: bytes) -> list[bytes]:
    """How another system may have written a path: letters with their accents apart or in one, other slashes."""
    text = path.decode("utf-8", "surrogateescape").replace("\\", "/")
    return [unicodedata.normalize(form, text).encode("utf-8", "surrogateescape") for form in ("NFC", "NFD")]


def read_image(path: str) -> bytes:
    """What a file holds, of those that find_images gives."""
    if os.path.isdir(path):
        raise UserError(f"the folder {path} holds no images ({KNOWN})")
    return read_file(path)
