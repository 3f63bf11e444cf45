"""Arrays that stay in their file until they are asked for, so that a network is filled one parameter at a time."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, Callable

import numpy as np

from paddlevit.errors import MissingFileError
from paddlevit.weights.report import WeightsError

# Elements up to which a tensor may be larger than its storage (stride 0, as torch's expand() leaves it).
_MAX_REPEATED = 2**20
# What reading a damaged file can raise, from the standard library and NumPy.
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    OSError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Whatever fails inside is reported as a WeightsError that names the file."""
    try:
        yield
    except MissingFileError:
        raise
    except WeightsError as error:
        prefix = "" if path in str(error) else f"{path}: "
        raise WeightsError(f"{prefix}{error}") from None
    except (PermissionError, IsADirectoryError) as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{path} is damaged or cut short ({reason[:200]})") from error


def from_bits(array: np.ndarray) -> np.ndarray:
    """bfloat16, which NumPy lacks and Paddle and our readers hand over as uint16, as float32; others unchanged."""
    if array.dtype != np.uint16:
        return array
    return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)


class LazyArray:
    """An array with a known `shape`; `read()` fetches its values."""

    def __init__(self, shape: Sequence[int], fetch: Callable[[], np.ndarray]) -> None:
        self.shape = tuple(int(size) for size in shape)
        self._fetch = fetch

    @classmethod
    def of(cls, value: Any) -> LazyArray:
        """Around an array or tensor that is in memory already."""
        return value if isinstance(value, LazyArray) else cls(value.shape, lambda: np.asarray(value))

    def read(self) -> np.ndarray:
        """The values, bfloat16 as float32. Raises WeightsError where the file is damaged."""
        return from_bits(self._fetch())

    def then(self, change: Callable[[np.ndarray], np.ndarray], shape: Sequence[int]) -> LazyArray:
        """The array `change(values)`, which has the shape `shape`."""
        return LazyArray(shape, lambda: change(self.read()))


class Span:
    """A byte string that was left in its file; `text`: it stands there as UTF-8 of its Latin-1 characters."""

    def __init__(self, path: str, offset: int, length: int, text: bool = False) -> None:
        self.path = path
        self.offset = offset
        self.length = length
        self.text = text

    def __len__(self) -> int:
        return self.length

    def read(self) -> np.ndarray:
        """The bytes, uint8 [length]."""
        raw = np.fromfile(self.path, np.uint8, count=self.length, offset=self.offset)
        if raw.size != self.length:
            raise WeightsError(f"{self.path} is cut short")
        if self.text:
            return np.frombuffer(bytearray(raw.tobytes().decode("utf-8").encode("latin-1")), np.uint8)
        return raw


def strided(flat: np.ndarray, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """A copy of the view of `flat` [n] that has this shape and these strides (in elements), checked against n."""
    last = sum((size - 1) * stride for size, stride in zip(shape, strides)) if prod(shape) else -1
    if len(shape) != len(strides) or min([*shape, *strides, 0]) < 0 or last >= flat.size:
        raise WeightsError(f"a tensor of shape {list(shape)} and strides {list(strides)} leaves its storage")
    if prod(shape) > max(flat.size, _MAX_REPEATED):
        raise WeightsError(f"a tensor of shape {list(shape)} repeats {flat.size} stored values")
    view = np.lib.stride_tricks.as_strided(flat, shape, [stride * flat.itemsize for stride in strides])
    return np.ascontiguousarray(view).reshape(shape)
