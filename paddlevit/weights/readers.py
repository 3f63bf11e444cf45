"""Readers of weights files: Paddle's `.pdparams`, torch's `.pth` / `.pt` / `.bin`, and `.safetensors`.

The first bytes of a file decide, not its suffix. No reader runs code from a file, and none needs torch.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
from safetensors import SafetensorError, safe_open

from paddlevit.errors import MissingFileError
from paddlevit.weights.builders import Storage, named, storage_dtype
from paddlevit.weights.lazy import LazyArray, naming
from paddlevit.weights.pickles import Unpickler
from paddlevit.weights.report import WeightsError, listing

PathLike = Union[str, "os.PathLike[str]"]

# Where a training file keeps the weights; the first that is there counts.
_WRAPPERS = ("model", "state_dict", "model_ema")
# Entries of Paddle's files that are no weights: names of its tensors, and how protocols 2 and 3 cut arrays over 1 GB.
_PADDLE_NAMES = "StructuredToParameterName@@"
_PADDLE_SLICES = "UnpackBigParamInfor@@"
# The safetensors library maps the file, and what was read of it counts as memory until it is closed: arrays of this
# many bytes or more are read through a mapping of their own.
_OWN_MAPPING = 1 << 20
# The safetensors library reads no longer header, and no pickle or zip file begins with such a length and a brace: a
# pickle does begin with the byte of one length in 256.
_LONGEST_HEADER = 100_000_000
_LEGACY_TORCH = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def read_state_dict(path: PathLike) -> dict[str, np.ndarray]:
    """The weights of a file as arrays, under the file's own names and in its own layout; bfloat16 as float32.

    Takes what `open_state_dict` takes. Raises MissingFileError, and WeightsError (both UserErrors) for a file that is
    damaged, of an unknown kind, or refers to code.
    """
    lazy = open_state_dict(path)
    with naming(str(path)):
        return {name: array.read() for name, array in lazy.items()}


def open_state_dict(path: PathLike) -> dict[str, LazyArray]:
    """As `read_state_dict`, but the arrays stay in the file until each is read.

    `path` may lack its `.pdparams` suffix. The weights may lie under `model`, `state_dict` or `model_ema` (the first of
    these that is there) and all names may begin with `module.`; both are taken off.
    """
    path = find(path)
    with naming(path):
        with open(path, "rb") as file:
            start = file.read(16)
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
            content = _read_safetensors(path)
        elif start.startswith(b"PK\x03\x04"):
            content = _TorchZip(path).load()
        elif start[:1] == b"\x80":
            content = _read_pickle(path)
        elif not start:
            raise WeightsError(f"{path} is empty")
        else:
            raise WeightsError(
                f"{path} begins with {start!r}, so it is no .pdparams, .pth or .safetensors file"
                + (": a web page was saved in its place" if start.lstrip()[:1] == b"<" else "")
                + (": fetch the file itself with `git lfs pull`" if start.startswith(b"version https") else "")
            )
        return flatten(content)


def find(path: PathLike) -> str:
    """The file that `path` names, with or without its `.pdparams` suffix. Raises MissingFileError."""
    for candidate in (Path(path), Path(f"{path}.pdparams")):
        if candidate.is_file():
            return str(candidate)
    if Path(path).is_dir():
        raise WeightsError(f"{path} is a folder, not a weights file")
    other = "" if str(path).endswith(".pdparams") else f", and no {path}.pdparams"
    raise MissingFileError(f"there is no weights file {path}{other}")


def flatten(content: Any) -> dict[str, LazyArray]:
    """The weights inside whatever a file or a caller gave, by name. Raises WeightsError where there are none."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"the file holds a {type(content).__name__}, not a dict of weights")
    wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if wrapper is not None:
        content = content[wrapper]
    content = _joined({name: _unnamed(value) for name, value in content.items() if name != _PADDLE_NAMES})
    strange = [f"{name} ({type(value).__name__})" for name, value in content.items() if not _is_array(name, value)]
    if strange or not content:
        what = f"entries that are no arrays: {listing(strange)}" if strange else "no entries"
        raise WeightsError(f"the state dict has {what}; weights are looked for in {', '.join(_WRAPPERS)} or at the top")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name[len(prefix) :]: LazyArray.of(value) for name, value in content.items()}


def _is_array(name: Any, value: Any) -> bool:
    return isinstance(name, str) and hasattr(value, "shape") and not isinstance(value, type)


def _unnamed(value: Any) -> Any:
    """Paddle 2.1 and later save a tensor of a nested dict as (its name, its array)."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return value[1]
    return value


def _joined(content: dict[str, Any]) -> dict[str, Any]:
    """Puts arrays together that Paddle cut into slices."""
    for name, info in content.pop(_PADDLE_SLICES, {}).items():
        slices = [LazyArray.of(content.pop(part)) for part in info["slices"]]
        content[name] = _concatenated(slices, tuple(info["OriginShape"]))
    return content


def _concatenated(slices: list[LazyArray], shape: tuple) -> LazyArray:
    return LazyArray(shape, lambda: np.concatenate([part.read() for part in slices]).reshape(shape))


def _read_pickle(path: str) -> Any:
    """Paddle's files, and torch's from before 1.6, which are pickles followed by the storages."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        content = Unpickler(file, size, names=named, path=path).load()
        if content == _LEGACY_TORCH:
            content = _LegacyTorch(path, file, size).load()
    return content


class _LegacyTorch:
    """torch.save before 1.6: magic number, version, machine, objects, storage keys, then per storage its size and data.

    `file` stands behind the magic number.
    """

    def __init__(self, path: str, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.byteorder = "<"
        self.storages: dict[str, Storage] = {}
        self.offsets: dict[str, int] = {}

    def load(self) -> Any:
        machine = Unpickler(self.file, self.size, names=named, persistent=self.storage, path=self.path)
        version, system = machine.load(), machine.load()
        if version != _LEGACY_VERSION:
            raise WeightsError(f"has version {version} of torch's old format, known is {_LEGACY_VERSION}")
        self.byteorder = "<" if system["little_endian"] else ">"
        content = machine.load()
        for key in machine.load():
            storage = self.storages[key]
            (count,) = np.frombuffer(machine.take(8), self.byteorder + "i8")
            self.offsets[key] = self.file.tell()
            if count != storage.size or self.offsets[key] + count * storage.dtype.itemsize > self.size:
                raise EOFError(f"storage {key} is cut short")
            self.file.seek(int(count) * storage.dtype.itemsize, 1)
        return content

    def storage(self, identity: tuple) -> Storage:
        """The storage that a persistent id describes; a part of it where the id ends with (key, offset, size)."""
        kind, cls, key, _, size, *view = identity
        if kind != "storage":
            raise WeightsError(f"refers to a {kind} outside of its arrays")
        dtype = storage_dtype(cls, self.byteorder)
        self.storages.setdefault(key, Storage(dtype, size, lambda start, count: self.read(key, dtype, start, count)))
        if not view or view[0] is None:
            return self.storages[key]
        _, first, length = view[0]
        if first < 0 or first + length > size:
            raise ValueError(f"a view leaves its storage {key}")
        return Storage(dtype, length, lambda start, count: self.read(key, dtype, first + start, count))

    def read(self, key: str, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        offset = self.offsets[key] + start * dtype.itemsize
        flat = np.fromfile(self.path, dtype, count=count, offset=offset)
        return flat.astype(dtype.newbyteorder("="), copy=False)


class _TorchZip:
    """torch.save since 1.6: a zip archive with the objects in data.pkl and one uncompressed entry per storage."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.archive = zipfile.ZipFile(path)
        pickles = [name for name in self.archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise WeightsError(f"{path} is a zip archive, but not one that torch.save wrote")
        self.root = pickles[0][: -len("data.pkl")]
        self.byteorder = "<"

    def load(self) -> Any:
        if f"{self.root}byteorder" in self.archive.namelist():
            order = self.archive.read(self.entry("byteorder"))
            self.byteorder = {b"little": "<", b"big": ">"}[order]
        data = self.archive.read(self.entry("data.pkl"))
        return Unpickler(io.BytesIO(data), len(data), names=named, persistent=self.storage).load()

    def entry(self, name: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(self.root + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > os.path.getsize(self.path):
            raise WeightsError(f"{self.path}: {name} is compressed, which torch.save never does")
        return info

    def storage(self, identity: tuple) -> Storage:
        kind, cls, key, _, size = identity
        if kind != "storage":
            raise WeightsError(f"refers to a {kind} outside of its arrays")
        dtype = storage_dtype(cls, self.byteorder)
        info = self.entry(f"data/{key}")
        if not 0 <= size * dtype.itemsize <= info.file_size:
            raise EOFError(f"storage {key} is cut short")
        return Storage(dtype, size, lambda start, count: self.read(info, dtype, start, count))

    def read(self, info: zipfile.ZipInfo, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        flat = np.empty(count, dtype)
        with naming(self.path), self.archive.open(info) as entry:
            assert isinstance(entry, zipfile.ZipExtFile)
            if start:
                entry.seek(start * dtype.itemsize)
            if entry.readinto(flat.view(np.uint8).data) != flat.nbytes:
                raise EOFError(f"{info.filename} is cut short")
        return flat.astype(dtype.newbyteorder("="), copy=False)


def _read_safetensors(path: str) -> dict[str, LazyArray]:
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise WeightsError(f"{path} is no whole .safetensors file ({error})") from None
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(length))
    return {name: _safetensor(path, file, name, header[name], 8 + length) for name in file.keys()}  # noqa: SIM118


def _safetensor(path: str, file: Any, name: str, entry: dict[str, Any], data: int) -> LazyArray:
    start, end = entry["data_offsets"]

    def fetch() -> np.ndarray:
        if entry["dtype"] == "BF16":
            # NumPy has no bfloat16, so the library, which has checked the header, cannot hand it over.
            return np.fromfile(path, "<u2", count=(end - start) // 2, offset=data + start).reshape(entry["shape"])
        if end - start < _OWN_MAPPING:
            return file.get_tensor(name)
        with safe_open(path, framework="numpy") as once:
            return once.get_tensor(name)

    return LazyArray(entry["shape"], fetch)
