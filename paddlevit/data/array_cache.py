"""Arrays that take long to make, kept in the user's cache folder and mapped into memory.

All processes that map a file share its pages, so that a worker's own memory does not grow with the data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

_VERSION = 1
_ALIGNMENT = 64
_HEADER_SIZE = 4096

# Making less than this again takes less than 0.1 s, and a folder full of small files helps nobody.
_SMALLEST = 4 << 20


def cached_arrays(kind: str, files: Sequence[Path], make: Callable[[], Arrays]) -> Arrays:
    """make(), or what it gave the last time, read-only, as long as none of `files` has changed since.

    A cache that cannot be read or written costs time only.
    """
    try:
        stamp: list[Any] = [kind, _VERSION, *(_stamp(file) for file in files)]
    except OSError:
        return make()  # which says what is wrong
    paths = "\n".join(entry[0] for entry in stamp[2:])
    name = hashlib.sha256(os.fsencode(paths)).hexdigest()[:24]
    place = cache_folder() / f"{kind}-{name}.arrays"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        arrays = _read(place, stamp)
        if arrays is not None:
            return arrays
    arrays = make()
    if sum(array.nbytes for array in arrays.values()) < _SMALLEST or stamp[2:] != [_stamp(file) for file in files]:
        return arrays
    try:
        _write(place, stamp, arrays)
        return _read(place, stamp) or arrays
    except OSError as error:
        logger.info("%s is not written (%s): the next start takes as long as this one", place, error.strerror)
        return arrays


def cache_folder() -> Path:
    """Where the files are: paddlevit in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "paddlevit"


def _stamp(file: Path) -> list[Any]:
    state = os.stat(file)
    return [os.path.abspath(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _read(place: Path, stamp: list[Any]) -> Arrays | None:
    """The arrays in a file; None where they were made of something else."""
    with open(place, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header = json.loads(content[:_HEADER_SIZE].rstrip(b"\0"))
    if header["stamp"] != stamp or header["size"] != len(content):
        return None
    return {
        name: np.frombuffer(content, dtype=dtype, count=count, offset=offset)
        for name, dtype, count, offset in header["arrays"]
    }


def _write(place: Path, stamp: list[Any], arrays: Arrays) -> None:
    """Write a file at once or not at all: other processes may do the same, or map the one before."""
    entries: list[list[Any]] = []
    offset = _HEADER_SIZE
    for name, array in arrays.items():
        entries.append([name, array.dtype.str, array.size, offset])
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    header = json.dumps({"stamp": stamp, "size": offset, "arrays": entries}).encode()
    if len(header) > _HEADER_SIZE:
        return  # paths of some thousand characters
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(prefix=place.name, suffix=".unfinished", dir=place.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(header.ljust(_HEADER_SIZE, b"\0"))
            for entry, array in zip(entries, arrays.values()):
                file.seek(entry[3])
                file.write(np.ascontiguousarray(array).data)
            file.truncate(offset)
        os.replace(unfinished, place)
    except BaseException:
        os.unlink(unfinished)
        raise
