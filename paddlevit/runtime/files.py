"""Files that are whole or not there, and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from paddlevit.errors import UserError
from paddlevit.runtime.streams import utf8_names


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file next to `path`, flush it to the disk, and put it in `path`'s place in one step."""
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        with contextlib.suppress(OSError):  # Windows opens no folders; some network file systems cannot, and need not
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # its names too: only then may what they replace be removed
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was saved before is untouched"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, atomically."""
    write_file(path, lambda part: part.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically; of names in it, bytes that are not UTF-8 are escaped."""
    write_bytes(path, utf8_names(text).encode("utf-8", "backslashreplace"))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, atomically."""
    write_file(target, lambda part: shutil.copyfile(source, part))


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal; empty where there is none."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(weights: Mapping[str, Any]) -> str:
    """SHA-256 of the names and values of tensors."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()
