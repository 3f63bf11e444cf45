"""What the classes of a data set are called: its own file of names, and the names of ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddlevit.errors import UserError

CLASS_NAMES_FILE = "class_names.txt"

# ImageNet's own file; in its archive it lies three folders above the images.
_MAPPING_FILE = "LOC_synset_mapping.txt"
_FOLDERS_ABOVE = 3


def read_class_names(file: Path) -> list[str] | None:
    """The names in a file that has one a line; None where there is no such file. Raises UserError where it has none."""
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


def class_names_text(names: Sequence[str]) -> str:
    """What `read_class_names` reads; folders whose name is no text, or has line breaks, change it a little."""
    lines = (" ".join(name.encode("utf-8", "replace").decode("utf-8").splitlines()) for name in names)
    return "".join(f"{line}\n" for line in lines)


def readable(names: Sequence[str], root: Path) -> Sequence[str]:
    """`names`, in words where they are ImageNet's identifiers ('n01440764') and its LOC_synset_mapping.txt lies in
    `root` or above it. Where the file is in `root` itself, plain numbers of as many classes are named by it too.
    """
    words = imagenet_names(root)
    if all(name in words for name in names):
        return [words[name] for name in names]
    numbers = len(names) == len(words) and list(names) == [str(label) for label in range(len(names))]
    return list(words.values()) if numbers and (root / _MAPPING_FILE).is_file() else names


def imagenet_names(root: Path) -> dict[str, str]:
    """Names by identifier, in the order of the labels, of the LOC_synset_mapping.txt in `root` or up to three folders
    above it; empty where there is none.
    """
    for folder in [root, *list(root.absolute().parents)[:_FOLDERS_ABOVE]]:  # no slices of parents in Python 3.9
        try:
            lines = (folder / _MAPPING_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        pairs = (line.split(maxsplit=1) for line in sorted(lines))
        return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
    return {}
