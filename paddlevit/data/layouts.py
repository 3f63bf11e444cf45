"""What a data folder may look like, and the source that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddlevit.data.class_names import CLASS_NAMES_FILE, read_class_names, readable
from paddlevit.data.index import Index, read_list
from paddlevit.data.sources import FolderSource, ListSource, Source, ZipSource, class_folders
from paddlevit.errors import MissingFileError, UserError

SPLITS = ("train", "val")


def open_imagenet(root: Path, split: str) -> Source:
    """The images of a split ('train' or 'val') of the data set in the folder `root`.

    List files are taken before zip files, and these before folders; splits are not mixed. Raises MissingFileError
    where there is none of them, and UserError where what is there cannot be used.
    """
    if not root.is_dir():
        raise MissingFileError(f"the data folder {root} does not exist: name it with -data_path (DATA.DATA_PATH)")
    for suffix, opened in (("list", _open_list), ("map", _open_zip)):
        files = {name: root / f"{name}_{suffix}.txt" for name in SPLITS}
        there = [file for file in files.values() if file.is_file()]
        if there and files[split] not in there:
            raise MissingFileError(f"{files[split]} is missing, though {there[0]} is there")
        if there:
            names = _class_names(root, [read_list(file) for file in there], there)
            return opened(root, split, names)
    if any((root / name).is_dir() for name in SPLITS):
        return open_folder(root, split)
    raise MissingFileError(
        f"no images to {'train on' if split == 'train' else 'validate'} in {root}. Looked for, in this order:\n"
        f"  {root}/{split}_list.txt, with a line 'relative/path label' for every image\n"
        f"  {root}/{split}_map.txt and {root}/{split}.zip, with a line 'path/in/zip<TAB>label' for every image\n"
        f"  {root}/{split}/<class>/*.jpg, *.jpeg or *.png"
    )


def _open_list(root: Path, split: str, names: Sequence[str]) -> Source:
    return ListSource(root, root / f"{split}_list.txt", names)


def _open_zip(root: Path, split: str, names: Sequence[str]) -> Source:
    return ZipSource(root / f"{split}.zip", root / f"{split}_map.txt", names)


def open_folder(root: Path, split: str) -> FolderSource:
    """The images of a split in folders of classes. Raises MissingFileError or UserError where they cannot be used."""
    folder = root / split
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing: the images of a split lie in {folder}/<class>/")
    # Labels count the classes to train on. Without these there is only the split itself to go by.
    classes = class_folders(root / "train" if (root / "train").is_dir() else folder)
    names = read_class_names(root / CLASS_NAMES_FILE)
    if names is not None and len(names) < len(classes):
        raise UserError(f"{root / CLASS_NAMES_FILE} has {len(names)} names, but there are {len(classes)} class folders")
    return FolderSource(folder, classes, readable(names or classes, root))


def _class_names(root: Path, indexes: Sequence[Index], files: Sequence[Path]) -> Sequence[str]:
    """Names of the classes that any of the list files has."""
    names = read_class_names(root / CLASS_NAMES_FILE)
    if names is None:
        num_classes = max(index.num_labels for index in indexes)
        by_folder = (index.folders() for index in indexes if index.num_labels == num_classes)
        folders = next(filter(None, by_folder), None)
        return readable(folders or [str(label) for label in range(num_classes)], root)
    for index, file in zip(indexes, files):
        if index.num_labels > len(names):
            i = int(index.labels.argmax())
            raise UserError(
                f"{file}, line {index.line(i)}: label {index.labels[i]}, but {root / CLASS_NAMES_FILE} names "
                f"{len(names)} classes, 0 to {len(names) - 1}"
            )
    return readable(names, root)
