"""What torch.save writes, read and written without torch.

It is a zip archive, or before torch 1.6 pickles followed by the storages.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from paddlevit.safe_pickle import NAMES, LazyArray, Placeholder, Unpickler, copied, sizes
from paddlevit.weights.report import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
# What torch's storage classes stand for. NumPy has no bfloat16: its bits travel as uint16, as in Paddle.
_CODES = {
    **{"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4", "Short": "i2"},
    **{"Char": "i1", "Byte": "u1", "Bool": "b1"},
}
_STORAGES = {f"torch.{kind}Storage": code for kind, code in _CODES.items()}


class Storage:
    """Elements that tensors are views of; `data`, where they are in the file, is known when all objects are read."""

    def __init__(self, dtype: np.dtype, size: int) -> None:
        self.dtype = dtype
        self.size = size
        self.data = memoryview(b"")
        self.crc: int | None = None

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` elements from `start` on."""
        if self.crc is not None and zlib.crc32(self.data) != self.crc:
            raise WeightsError("an array is not what was stored (its CRC differs)")
        self.crc = None
        values = copied(self.data[start * self.dtype.itemsize : (start + count) * self.dtype.itemsize], self.dtype)
        if values.size != count:
            raise EOFError("a storage is cut short")
        return values


def _tensor(storage: Storage | Placeholder, offset: Any, shape: Any, strides: Any, *_: Any) -> LazyArray | Placeholder:
    """A torch tensor: a strided view into its storage, of which only the part that it covers is read."""
    if not isinstance(storage, Storage):
        return Placeholder(f"a tensor in {storage.name}")
    (offset,), shape, strides = sizes((offset,)), sizes(shape), sizes(strides)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides)) if prod(shape) else -1
    if len(shape) != len(strides) or last >= storage.size - offset:
        raise ValueError(f"a tensor of shape {list(shape)} leaves its storage of {storage.size} elements")

    def read() -> np.ndarray:
        flat = storage.read(offset, last + 1)
        view = np.lib.stride_tricks.as_strided(flat, shape, [stride * flat.itemsize for stride in strides])
        return np.ascontiguousarray(view).reshape(shape)

    return LazyArray(shape, read)


_NAMES = {
    **NAMES,
    **_STORAGES,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda function, _, arguments, *__: function(*arguments),
}


def _storage(pid: Any, byteorder: str, storages: dict[str, Storage]) -> Storage | Placeholder:
    """The storage that a persistent id means, which is added to `storages` by its key."""
    kind, code, key, _, size, *view = pid
    # Before torch 1.0 a storage could be a part of another: `view` said which. It has been None since.
    if kind != "storage" or not isinstance(key, str) or view not in ([], [None]):
        raise WeightsError("refers to something outside of its arrays")
    if code not in _STORAGES.values():
        return Placeholder(code.name)
    (size,) = sizes((size,))
    storage = storages.setdefault(key, Storage(np.dtype(byteorder + code), size))
    if (storage.size, storage.dtype) != (size, np.dtype(byteorder + code)):
        raise ValueError(f"storage {key} is described in two ways")
    return storage


def read_zip(path: str, data: memoryview) -> Any:
    """The objects in an archive: they are in data.pkl, and each storage in an uncompressed entry. `data`: the file."""
    archive = zipfile.ZipFile(path)
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise WeightsError(f"{path} is a zip archive, but not one that torch.save wrote")
    root = pickles[0][: -len("data.pkl")]
    byteorder = "<"
    if f"{root}byteorder" in archive.namelist():
        byteorder = {b"little": "<", b"big": ">"}[bytes(_entry(archive, f"{root}byteorder", data)[0])]
    storages: dict[str, Storage] = {}
    objects, crc = _entry(archive, pickles[0], data)
    if zlib.crc32(objects) != crc:
        raise WeightsError("data.pkl is not what was stored (its CRC differs)")
    content = Unpickler(objects, names=_NAMES, persistent=lambda pid: _storage(pid, byteorder, storages)).load()
    for key, storage in storages.items():
        storage.data, storage.crc = _entry(archive, f"{root}data/{key}", data)
        if len(storage.data) < storage.size * storage.dtype.itemsize:
            raise EOFError(f"storage {key} is cut short")
    return content


def _entry(archive: zipfile.ZipFile, name: str, data: memoryview) -> tuple[memoryview, int]:
    """An entry's bytes and their CRC. They follow a header of 30 bytes, the name, and a field that may be padding."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{name} is compressed, which torch.save never does")
    start = info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26))
    if start + info.file_size > len(data):
        raise EOFError(f"{name} is cut short")
    return data[start : start + info.file_size], info.CRC


def read_legacy(data: memoryview, at: int) -> Any:
    """The objects of a file from before torch 1.6, whose magic number ends at `at`.

    It goes on with a version, the machine, the objects, the storages' keys, and for each its size and data.
    """
    storages: dict[str, Storage] = {}
    byteorder = "<"

    def load() -> Any:
        nonlocal at
        unpickler = Unpickler(data, at, names=_NAMES, persistent=lambda pid: _storage(pid, byteorder, storages))
        content = unpickler.load()
        at = unpickler.window.at
        return content

    if load() != _LEGACY_VERSION:
        raise WeightsError(f"is of another version of torch's old format than {_LEGACY_VERSION}")
    byteorder = "<" if load()["little_endian"] else ">"
    content, keys = load(), load()
    if sorted(storages) != sorted(key for key in keys if isinstance(key, str)):
        raise WeightsError("lists other storages than its tensors refer to")
    for key in keys:
        storage = storages[key]
        length = storage.size * storage.dtype.itemsize
        (count,) = struct.unpack_from(byteorder + "q", data, at)
        storage.data = data[at + 8 : at + 8 + length]
        at += 8 + length
        if count != storage.size or at > len(data):
            raise EOFError(f"storage {key} is cut short")
    return content


def write_zip(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, in C order, as the tensors of a dict that `torch.load(path, weights_only=True)` reads."""
    tensors = b"".join(_pickled(name, array, key) for key, (name, array) in enumerate(arrays.items()))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + tensors + b"u.")  # protocol 2, as torch wants it
        archive.writestr("archive/byteorder", sys.byteorder)
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(name: str, array: np.ndarray, key: int) -> bytes:
    """The opcodes of a dict's entry: the name, and a call of torch's function that makes a tensor of a storage."""
    kind = next(kind for kind, code in _STORAGES.items() if code == array.dtype.str[1:])
    storage = _ops("storage") + _global(kind) + _ops(str(key)) + _ops("cpu") + _ops(array.size)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    hooks = _global("collections.OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID + _ops(0) + _ops(array.shape) + _ops(strides)
    call = pickle.MARK + arguments + pickle.NEWFALSE + hooks + pickle.TUPLE + pickle.REDUCE
    return _ops(name) + _global("torch._utils._rebuild_tensor_v2") + call


def _ops(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]  # without the protocol's number and the end


def _global(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{last}\n".encode()
