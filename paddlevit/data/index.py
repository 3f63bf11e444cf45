"""The text files of a data set: lists of paths with labels, and names of classes.

Paths and labels are flat arrays: a Python list of a million strings would be copied page by page into every worker that
only reads it, because reading counts references.
"""

from __future__ import annotations

import codecs
import functools
import io
import math
import os
import re
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlevit.errors import MissingFileError, UserError, quoted
from paddlevit.runtime.streams import utf8_names

CLASS_NAMES_FILE = "class_names.txt"

# ImageNet's own file of names; in its archive it lies three folders above the images.
_MAPPING_FILE = "LOC_synset_mapping.txt"
_FOLDERS_ABOVE = 3
_MANY_CLASSES = 1000

_MAX_LABEL_DIGITS = 6


def read_file(path: str | Path) -> bytes:
    """What a file holds."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def plain_text(content: bytes, name: str) -> bytes:
    """Text as editors and shells write it, UTF-16 too, without its byte order mark; every line ends with a line feed,
    and maybe a carriage return before that. Bytes that are not UTF-8 stay: names of files need not be text. Messages
    call it `name`.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            content = content.decode("utf-16").encode("utf-8")
        except UnicodeError:
            raise UserError(f"{name} begins as UTF-16 and is damaged: save it as UTF-8") from None
    elif content.startswith(codecs.BOM_UTF8):
        content = content[len(codecs.BOM_UTF8) :]
    if b"\0" in content:
        raise UserError(f"{name} holds zero bytes, which no text does: save it as UTF-8")
    return re.sub(rb"\r(?!\n)", b"\n", content) if b"\r" in content else content


def text_lines(file: Path) -> dict[int, str]:
    """The lines of a text file that are not blank, as plain names, by number."""
    lines = {}
    for number, line in enumerate(plain_text(read_file(file), str(file)).split(b"\n"), 1):
        try:
            lines[number] = plain_name(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{file}, line {number}: {quoted(line)} is not UTF-8: save the file as UTF-8") from None
    return {number: name for number, name in lines.items() if name}


def plain_name(name: str) -> str:
    """How a class's name is shown, written and compared: on one line, in Unicode's composed form (NFC).

    macOS takes names of folders apart (NFD), so that the same letters are other characters.
    """
    text = utf8_names(name).encode("utf-8", "backslashreplace").decode("utf-8")  # a folder's name need not be text
    return unicodedata.normalize("NFC", re.sub(r"[\r\n]+", " ", text).strip())


def read_class_names(file: Path) -> list[str] | None:
    """The names in a file that has one a line; None where there is no such file."""
    if not file.exists():
        return None
    lines = text_lines(file)
    if not lines:
        raise UserError(f"{file} is empty: write one class name per line, or delete the file")
    refuse_namesakes(file, lines)
    return list(lines.values())


def refuse_namesakes(
    where: Path | str, names: dict[Any, str], place: str = "line", *, many: float = _MANY_CLASSES
) -> None:
    """Raises UserError where two have one name; of `many` two may be called alike, as ImageNet's cranes."""
    first: dict[str, Any] = {}
    for key, name in names.items():
        if first.setdefault(name, key) != key and len(names) < many:
            raise UserError(f"{where}, {place} {key}: '{name}' is given twice, first in {place} {first[name]}")


def class_names_text(names: Sequence[str]) -> str:
    """What `read_class_names` reads."""
    return "".join(f"{plain_name(name)}\n" for name in names)


def readable(names: Sequence[str], root: Path) -> Sequence[str]:
    """`names`, in words where they are ImageNet's identifiers ('n01440764'). Plain numbers are named by a
    LOC_synset_mapping.txt of as many classes in `root` itself. Names stay where two would get the same word.
    """
    words, found = imagenet_names(root), names
    if all(name in words for name in names):
        found = [words[name] for name in names]
    elif list(names) == [str(label) for label in range(len(words))] and (root / _MAPPING_FILE).is_file():
        found = list(words.values())
    return found if len(found) >= _MANY_CLASSES or len(set(found)) == len(found) else names


def imagenet_names(root: Path) -> dict[str, str]:
    """Names by identifier, in the order of the labels: of the LOC_synset_mapping.txt in `root` or up to three folders
    above it, else those that the package has.
    """
    folders = [root, *list(root.absolute().parents)[:_FOLDERS_ABOVE]]  # no slices of parents in Python 3.9
    own = (folder / _MAPPING_FILE for folder in folders if (folder / _MAPPING_FILE).is_file())
    file = next(own, Path(__file__).with_name("imagenet_classes.txt"))
    pairs = {number: line.split(maxsplit=1) for number, line in text_lines(file).items()}
    pairs = {number: pair for number, pair in pairs.items() if len(pair) == 2 and pair[0] != "#"}
    refuse_namesakes(file, {number: identifier for number, (identifier, _) in pairs.items()}, many=math.inf)
    return dict(sorted(pairs.values()))


@dataclass(frozen=True)
class Index:
    """Paths and labels of N images. The i-th path is `lengths[i]` bytes of `text`, from `starts[i]`."""

    text: bytes  # the list file, or the paths of a folder, one a line
    starts: np.ndarray  # int64 [N]
    lengths: np.ndarray  # int32 [N]
    labels: np.ndarray  # int32 [N]
    places: Sequence[tuple[int, bytes]] = ()  # of a list: labels with each folder of their images, as they come

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> bytes:
        """The i-th path, as bytes of the file system."""
        start = int(self.starts[i])
        return self.text[start : start + int(self.lengths[i])]

    def line(self, i: int) -> int:
        """Number of the line on which the i-th path stands, from 1."""
        return self.text.count(b"\n", 0, int(self.starts[i])) + 1

    def first_folders(self) -> dict[int, bytes]:
        """The folder of each label's first image, in the order of labels."""
        return dict(sorted(dict(reversed(self.places)).items()))

    def class_names(self) -> list[str] | None:
        """Per label the name of the folder in or below which all its images lie, or the label where it has none; None
        where an image lies in no folder, or two labels have the same.
        """
        first = self.first_folders()
        names = [folder_name(first[label]) if label in first else str(label) for label in range(max(first) + 1)]
        if "" in names or len(set(names)) < len(names):
            return None
        for label, folder in self.places:
            if not folder.startswith(first[label] + b"/") and folder_name(folder) != names[label]:
                return None
        return names


def folder_name(folder: bytes) -> str:
    """How the name of a folder is shown, without those above it."""
    return plain_name(os.fsdecode(folder.rstrip(b"/").rpartition(b"/")[2]))


def index_of(paths: Sequence[bytes], labels: Sequence[int]) -> Index:
    """The index of paths that are in memory."""
    lengths = np.fromiter(map(len, paths), dtype=np.int32, count=len(paths))
    starts = np.cumsum(lengths, dtype=np.int64) - lengths + np.arange(len(paths))
    return Index(b"\n".join(paths), starts, lengths, np.asarray(labels, dtype=np.int32))


def read_list(file: Path) -> Index:
    """The index of a list file: per line a path, which may hold spaces, white space and a label."""
    return _read_list(file, stamp(file))


def stamp(file: Path) -> tuple[int, int] | None:
    """What changes when a file does; None where there is none."""
    state = os.stat(file) if os.path.exists(file) else None
    return state and (state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=2)  # one run asks for the lists of both splits several times
def _read_list(file: Path, _: tuple[int, int] | None) -> Index:
    text = plain_text(read_file(file), str(file))
    starts, lengths, labels, end = array("q"), array("i"), array("i"), 0
    places: dict[tuple[int, bytes], None] = {}
    windows = b"\\" in text
    for line in io.BytesIO(text):
        end += len(line)
        line = line.lstrip()
        words = line.rsplit(None, 1)
        if not words:
            continue
        if len(words) == 1 or not words[1].isdigit() or len(words[1]) > _MAX_LABEL_DIGITS:
            word, number = quoted(words[-1].decode("utf-8", "replace")), text.count(10, 0, end - len(line)) + 1
            said = f"{word} has no label after it"
            if len(words) == 2:
                said = f"the label is {word}, allowed: whole numbers, 0 to 999999"
            raise UserError(f"{file}, line {number}: {said}")
        label = int(words[1])
        starts.append(end - len(line))
        lengths.append(len(words[0]))
        labels.append(label)
        path = words[0].replace(b"\\", b"/") if windows else words[0]
        places[label, path.rpartition(b"/")[0]] = None
    if not places:
        raise UserError(f"{file} lists no images: a line holds a path, white space and a label")
    numbers = (np.frombuffer(starts, np.int64), np.frombuffer(lengths, np.int32), np.frombuffer(labels, np.int32))
    return Index(text, *numbers, list(places))
