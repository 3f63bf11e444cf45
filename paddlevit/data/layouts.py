"""What a data folder may look like, and the source that reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paddlevit.data.decode import is_image
from paddlevit.data.index import CLASS_NAMES_FILE, plain_name, read_class_names, read_list, readable
from paddlevit.data.sources import FolderSource, ListSource, Source, ZipSource, class_folders, say_once
from paddlevit.errors import MissingFileError, UserError

SPLITS = ("train", "val")

_MOST_NAMED = 3  # folders in a message


def open_imagenet(root: Path, split: str) -> Source:
    """The images of a split ('train' or 'val') of the data set in the folder `root`.

    List files are taken before zip files, and these before folders; splits are not mixed. Raises MissingFileError
    where there is none of them, and UserError where what is there cannot be used.
    """
    if not root.is_dir():
        raise MissingFileError(f"the data folder {root} does not exist: name it with -data_path (DATA.DATA_PATH)")
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
    """The images of a split in folders of classes. Raises MissingFileError or UserError where they cannot be used."""
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
    return FolderSource(folder, _in_the_order_of(names, classes, file), readable(names, root))


def _in_the_order_of(names: Sequence[str], folders: Sequence[str], file: Path) -> list[str]:
    """A folder per name: those of the same names, or, if there is none, `folders` in their own order."""
    by_name = {plain_name(folder): folder for folder in folders}
    unknown = [name for name in by_name if name not in names]
    if not unknown:
        return [by_name.get(name, name) for name in names]
    if len(unknown) < len(folders):
        raise UserError(f"{file} has no class '{unknown[0]}', though there is a folder of that name")
    if len(names) != len(folders):
        raise UserError(f"{file} has {len(names)} names, but there are {len(folders)} class folders")
    return list(folders)


def _names_of_lists(root: Path, files: Sequence[Path]) -> Sequence[str]:
    """Names of the classes that any of the list files has."""
    indexes = [read_list(file) for file in files]
    where = root / CLASS_NAMES_FILE
    names: Sequence[str] | None = read_class_names(where)
    if names is None:
        num_classes = max(index.num_labels for index in indexes)
        unused = set(range(num_classes)).difference(*(np.flatnonzero(index.first() >= 0).tolist() for index in indexes))
        if unused:
            say_once(f"{files[0]}: no image has label {min(unused)}, of 0 to {num_classes - 1}: labels count from 0")
        by_folder = ((file, index.folders) for index, file in zip(indexes, files) if index.num_labels == num_classes)
        where, names = next((found for found in by_folder if found[1]), (where, None))
    if names is None:
        return readable([str(label) for label in range(num_classes)], root)
    for index, file in zip(indexes, files):
        for label, i in enumerate(index.first().tolist()):
            folder = index.folder(i)
            if i < 0 or (label < len(names) and (folder == names[label] or folder not in names)):
                continue
            said = f"has '{names[label]}' for it" if label < len(names) else f"names {len(names)} classes, from 0 on"
            place = f"{file}, line {index.line(i)}: label {label} for an image in folder '{folder}'"
            raise UserError(f"{place}, but {where} {said}")
    return readable(names, root)


def _nothing_found(root: Path, split: str) -> str:
    folders = [name for name in class_folders(root) if any(map(is_image, os.listdir(os.fsencode(root / name))))]
    if folders:
        some = ", ".join(folders[:_MOST_NAMED]) + ", ..." * (len(folders) > _MOST_NAMED)
        return (
            f"{root} has {len(folders)} class folders ({some}), but no train/ and val/. Divide them by\n"
            f"  paddlevit prepare split {root}\n"
            "which writes lists of images to train on and to validate with, and copies nothing"
        )
    return (
        f"no images to {'train on' if split == 'train' else 'validate'} in {root}. Looked for, in this order:\n"
        f"  {root}/{split}_list.txt, with a line 'relative/path label' for every image\n"
        f"  {root}/{split}_map.txt and {root}/{split}.zip, with a line 'path/in/zip<TAB>label' for every image\n"
        f"  {root}/{split}/<class>/*.jpg, *.png and other images"
    )
