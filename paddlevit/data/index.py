"""Paths and labels of a data set in flat arrays, and the list files that they are read from.

A Python list of a million strings would be copied page by page into every worker that only reads it, because reading
counts references; arrays stay shared.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlevit.data.array_cache import Arrays, cached_arrays
from paddlevit.errors import MissingFileError, UserError

_MAX_LABEL_DIGITS = 6
_WHITE_SPACE = np.zeros(256, dtype=bool)
_WHITE_SPACE[list(b" \t\n\r\v\f")] = True
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK = 1 << 24  # bytes of a list that are read at once: what that takes besides is some 20 times as much


@dataclass(frozen=True)
class Index:
    """Paths and labels of N images. The i-th path is `lengths[i]` bytes of `text`, from `starts[i]`."""

    text: np.ndarray  # uint8: the list file as it is, or the paths of a folder, one a line
    starts: np.ndarray  # int64 [N]
    lengths: np.ndarray  # int32 [N]
    labels: np.ndarray  # int32 [N]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_labels(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max(initial=-1)) + 1

    def path(self, i: int) -> bytes:
        """The i-th path, as bytes of the file system."""
        start = int(self.starts[i])
        return self.text[start : start + int(self.lengths[i])].tobytes()

    def line(self, i: int) -> int:
        """Number of the line on which the i-th path stands, from 1."""
        return int(np.count_nonzero(self.text[: int(self.starts[i])] == ord("\n"))) + 1

    def folders(self) -> list[str] | None:
        """Per label the name of the folder in which its files lie; None where that does not name the labels.

        It does where all images of a label lie in folders of one name, and no other label has that name.
        """
        present, first = np.unique(self.labels, return_index=True)
        starts, ends = self._folder_spans()
        names = [os.fsdecode(self.text[starts[i] : ends[i]].tobytes()) for i in first]
        if len(present) != self.num_labels or len(set(names)) != len(names) or "" in names:
            return None
        same = (ends - starts) == (ends - starts)[first][self.labels]
        for k in range(int((ends - starts).max())):
            letters = self.text[np.minimum(starts + k, len(self.text) - 1)]
            same &= (letters == letters[first][self.labels]) | (starts + k >= ends)
        return names if same.all() else None

    def _folder_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the name of each path's last folder starts and ends; both at the path's start where it has none."""
        slashes = np.concatenate([[-1], np.flatnonzero(self.text == ord("/"))])
        last = np.searchsorted(slashes, self.starts + self.lengths) - 1
        ends = np.maximum(slashes[last], self.starts)
        starts = np.maximum(slashes[np.maximum(last - 1, 0)] + 1, self.starts)
        return np.minimum(starts, ends), ends


def index_of(paths: Sequence[bytes], labels: Sequence[int]) -> Index:
    """The index of paths that are in memory."""
    lengths = np.fromiter(map(len, paths), dtype=np.int32, count=len(paths))
    starts = np.cumsum(lengths, dtype=np.int64) - lengths + np.arange(len(paths))
    text = np.frombuffer(b"\n".join(paths), dtype=np.uint8)
    return Index(text, starts, lengths, np.asarray(labels, dtype=np.int32))


def read_list(file: Path) -> Index:
    """The index of a list file: per line a path, white space and a label; a path may hold spaces. Blank lines are left
    out.

    Raises MissingFileError where there is no such file, and UserError with the line's number for a line without a
    label, a label that is no number from 0 to 999999, and a file without any line.
    """
    try:
        state = os.stat(file)
        return _read_list(file, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise MissingFileError(f"there is no list file {file}") from None
    except OSError as error:
        raise UserError(f"the list file {file} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=2)  # one run asks for the lists of both splits several times
def _read_list(file: Path, mtime_ns: int, size: int) -> Index:
    return Index(**cached_arrays("list", [file], lambda: _parsed(file)))


def _parsed(file: Path) -> Arrays:
    """The fields of an Index."""
    content = file.read_bytes()
    text = np.frombuffer(content, dtype=np.uint8)[len(_BYTE_ORDER_MARK) * content.startswith(_BYTE_ORDER_MARK) :]
    parts: list[tuple[np.ndarray, ...]] = []
    lines = start = 0
    while start < len(text):
        block = text[start : start + _BLOCK]
        if start + _BLOCK < len(text):  # up to the end of a line, wherever that is
            ends = np.flatnonzero(block == ord("\n"))
            block = block[: ends[-1] + 1] if len(ends) else text[start:]
        starts, lengths, labels = _parse(block, file, lines)
        parts.append((starts + start, lengths, labels))
        lines += int(np.count_nonzero(block == ord("\n")))
        start += len(block)
    if not sum(len(labels) for _, _, labels in parts):
        raise UserError(f"{file} lists no images: a line holds a path, white space and a label")
    starts, lengths, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return {"text": text, "starts": starts, "lengths": lengths, "labels": labels}


def _parse(text: np.ndarray, file: Path, lines_before: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the paths of some lines start, their lengths, and the labels."""
    starts, ends = _words(text)
    newlines = np.flatnonzero(text == ord("\n"))
    lines = np.searchsorted(newlines, starts)
    last = np.flatnonzero(np.append(lines[1:] != lines[:-1], True)[: len(lines)])
    first = np.append(0, last[:-1] + 1)[: len(last)]
    alone = first == last
    if alone.any():
        row = int(alone.argmax())
        word = text[starts[first[row]] : ends[first[row]]].tobytes().decode("utf-8", "replace")
        raise UserError(f"{file}, line {lines_before + lines[first[row]] + 1}: '{word}' has no label after it")
    labels, wrong = _numbers(text, starts[last], ends[last])
    if wrong.any():
        row = last[int(wrong.argmax())]
        word = text[starts[row] : ends[row]].tobytes().decode("utf-8", "replace")
        raise UserError(
            f"{file}, line {lines_before + lines[row] + 1}: the label is '{word}', allowed: whole numbers, 0 to 999999"
        )
    return starts[first], (ends[last - 1] - starts[first]).astype(np.int32), labels


def _words(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of bytes that are no white space start and end."""
    inside = np.zeros(len(text) + 2, dtype=bool)
    np.logical_not(_WHITE_SPACE[text], out=inside[1:-1])
    return np.flatnonzero(inside[1:] & ~inside[:-1]), np.flatnonzero(inside[:-1] & ~inside[1:])


def _numbers(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The decimal numbers [N] in `text`, and whether each is none, or has too many digits."""
    values = np.zeros(len(starts), dtype=np.int32)
    wrong = ends - starts > _MAX_LABEL_DIGITS
    for k in range(_MAX_LABEL_DIGITS):
        inside = starts + k < ends
        digits = text[np.minimum(starts + k, len(text) - 1)] - np.uint8(ord("0"))
        wrong |= inside & (digits > 9)
        values = np.where(inside, values * 10 + digits, values)
    return values, wrong
