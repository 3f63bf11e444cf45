"""What a data folder may look like, and the source that reads it."""

from pathlib import Path
from typing import List, Optional, Sequence

from paddlevit.data.index import Index, read_list
from paddlevit.data.sources import FolderSource, ListSource, Source, ZipSource, class_folders
from paddlevit.errors import MissingFileError, UserError

SPLITS = ("train", "val")
CLASS_NAMES_FILE = "class_names.txt"


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
        return _open_folder(root, split)
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


def _open_folder(root: Path, split: str) -> Source:
    folder = root / split
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing: the images of a split lie in {folder}/<class>/")
    # Labels count the classes to train on. Without these there is only the split itself to go by.
    classes = class_folders(root / "train" if (root / "train").is_dir() else folder)
    names = _given_names(root)
    if names is not None and len(names) < len(classes):
        raise UserError(f"{root / CLASS_NAMES_FILE} has {len(names)} names, but there are {len(classes)} class folders")
    return FolderSource(folder, classes, names or classes)


def _class_names(root: Path, indexes: Sequence[Index], files: Sequence[Path]) -> Sequence[str]:
    """Names of the classes that any of the list files has."""
    names = _given_names(root)
    if names is None:
        num_classes = max(index.num_labels for index in indexes)
        by_folder = (index.folders() for index in indexes if index.num_labels == num_classes)
        return next((folders for folders in by_folder if folders), [str(label) for label in range(num_classes)])
    for index, file in zip(indexes, files):
        if index.num_labels > len(names):
            i = int(index.labels.argmax())
            raise UserError(
                f"{file}, line {index.line(i)}: label {index.labels[i]}, but {root / CLASS_NAMES_FILE} names "
                f"{len(names)} classes, 0 to {len(names) - 1}"
            )
    return names


def _given_names(root: Path) -> Optional[List[str]]:
    """The lines of the data set's own file of names, if it has one."""
    file = root / CLASS_NAMES_FILE
    try:
        names = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    while names and not names[-1].strip():
        names.pop()
    if not names:
        raise UserError(f"{file} is empty: it holds the name of one class a line, or is not there")
    return [name.strip() for name in names]
