"""Readers of weights files: Paddle's `.pdparams`, torch's `.pth` / `.pt` / `.bin`, `.safetensors`, and shards of these.

The first bytes of a file decide, not its suffix. No reader runs code from a file, and none needs torch. A file is
mapped, and arrays are copied out of it when they are asked for: a model is filled one parameter at a time.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Union

import numpy as np

from paddlevit.errors import MissingFileError
from paddlevit.safe_pickle import LazyArray, Placeholder, Refused, Unpickler, copied, sizes
from paddlevit.weights import hub, torch_files
from paddlevit.weights.report import WeightsError
from paddlevit.weights.unwrap import StateDict, unwrap

PathLike = Union[str, "os.PathLike[str]"]

# What a folder is looked through for, in this order: Hugging Face's names, and the best weights of a run of ours.
_IN_A_FOLDER = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    "best.pdparams",
)
# The longest header that the safetensors library reads. A pickle, too, can begin with the first byte of a length, but
# neither it nor a zip file with a length as short as this and a brace.
_LONGEST_HEADER = 100_000_000
# bfloat16 as the bits that NumPy can hold, as in Paddle.
SAFETENSORS = {
    **{"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "BOOL": "b1"},
    **{f"{kind.upper()}{8 * width}": f"{kind}{width}" for kind in "iu" for width in (1, 2, 4, 8)},
}


def read_state_dict(path: PathLike, *, which: str = "model") -> dict[str, np.ndarray]:
    """The weights of a file as arrays, under the file's own names and in its own layout; bfloat16 as float32.

    `path` may lack its `.pdparams` suffix, be a folder or the index of a sharded file, or what `hub.fetch` takes.
    Weights may lie in the dicts of a training checkpoint and have the prefixes of wrappers, which are taken off;
    `which` 'ema' takes their average; of our own <name>.pdparams and <name>_ema.pdparams, either of which may be named,
    it is the latter. Raises MissingFileError, and WeightsError (both UserErrors) for a file that is damaged, of an
    unknown kind, or made to do harm.
    """
    return open_state_dict(find(path), which).arrays


def open_state_dict(path: str, which: str) -> StateDict:
    """As `read_state_dict`, of a file that `find` has found, with what to say of it."""
    stem = path.removesuffix(".pdparams").removesuffix("_ema")
    ours = (f"{stem}.pdparams", f"{stem}_ema.pdparams")
    if which == "ema" and path in ours and all(map(os.path.isfile, ours)):
        path, which = ours[1], "model"
    with naming(path):
        content, size = _read_shards(path) if path.endswith(".index.json") else _read(path)
        return unwrap(content, which, size=size)


def find(path: PathLike) -> str:
    """The file that `path` names: itself, with `.pdparams`, in the folder, or fetched; ~ is the user's own folder.

    Raises MissingFileError.
    """
    path = os.path.expanduser(path)
    folder = Path(path)
    for candidate in (folder, Path(f"{path}.pdparams"), *(folder / name for name in _IN_A_FOLDER)):
        if candidate.is_file():
            # A checkpoint's state stands beside its weights, which are meant.
            weights = candidate.with_suffix(".pdparams") if candidate.suffix == ".pdstate" else candidate
            return str(weights if weights.is_file() else candidate)
    if folder.is_dir():
        raise WeightsError(f"the folder {path} has none of {', '.join(_IN_A_FOLDER)}: name the weights file")
    fetched = hub.fetch(path)
    if fetched:
        return str(fetched)
    other = "" if path.endswith(".pdparams") else f", and no {path}.pdparams"
    raise MissingFileError(f"there is no weights file {path}{other}")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Whatever fails inside is reported as a WeightsError that names the file."""
    try:
        yield
    except MissingFileError:
        raise
    except WeightsError as error:
        raise error if path in str(error) else WeightsError(f"{path}: {error}") from None
    except Refused as error:
        advice = "If you trust it, load it with the program that wrote it and save the bare state dict"
        raise WeightsError(f"{path} {error}. {advice}") from None
    except (PermissionError, IsADirectoryError) as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{path} is damaged or cut short ({reason[:200]})") from error


def _read(path: str) -> tuple[Any, int]:
    """What a file holds, and its size."""
    with open(path, "rb") as file:
        if not os.path.getsize(path):
            raise WeightsError(f"{path} is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    start = bytes(data[:16])
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return _read_safetensors(path, data), len(data)
    if start.startswith(b"PK\x03\x04"):
        return torch_files.read_zip(path, data), len(data)
    if start[:1] == b"\x80":  # Paddle's files, and torch's from before 1.6, which begin with a number
        unpickler = Unpickler(data)
        content = unpickler.load()
        if isinstance(content, int) and content == torch_files.MAGIC:
            content = torch_files.read_legacy(data, unpickler.window.at)
        return content, len(data)
    raise WeightsError(
        f"{path} begins with {start!r}, so it is not a .pdparams, .pth or .safetensors file"
        + (": a web page was saved in its place" if start.lstrip()[:1] == b"<" else "")
        + (": fetch the file itself with `git lfs pull`" if start.startswith(b"version https") else "")
    )


def _read_shards(path: str) -> tuple[dict[str, Any], int]:
    """What the files that an index of Hugging Face's names hold together, and their size."""
    names = json.loads(Path(path).read_bytes())["weight_map"]
    content: dict[str, Any] = {}
    total = 0
    for shard in sorted(set(names.values())):
        file = Path(path).parent / shard
        if shard != file.name or not file.is_file():
            raise MissingFileError(f"{path} names the shard {shard}, which is not beside it")
        part, size = _read(str(file))
        content.update(part)
        total += size
    missing = [name for name in names if name not in content]
    if missing:
        raise WeightsError(f"{path} names {missing[0]}, which is in none of its shards")
    return content, total


def _read_safetensors(path: str, data: memoryview) -> dict[str, Any]:
    """A header in JSON, which tells where behind it each array is."""
    begin = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(bytes(data[8:begin]))
        header.pop("__metadata__", None)
        if begin + max((entry["data_offsets"][1] for entry in header.values()), default=0) != len(data):
            raise ValueError("its header does not tell of as many bytes as there are")
        return {name: _safetensor(entry, data[begin:]) for name, entry in header.items()}
    except Exception as error:
        raise WeightsError(f"{path} is not a complete .safetensors file ({error})") from None


def _safetensor(entry: dict[str, Any], data: memoryview) -> LazyArray | Placeholder:
    shape, (start, end) = sizes(tuple(entry["shape"])), sizes(tuple(entry["data_offsets"]))
    if entry["dtype"] not in SAFETENSORS:
        return Placeholder(f"an array of dtype {entry['dtype']}")
    dtype = np.dtype("<" + SAFETENSORS[entry["dtype"]])
    if end - start != prod(shape) * dtype.itemsize or end > len(data):
        raise ValueError(f"an array of shape {list(shape)} and dtype {dtype} in {end - start} bytes")
    return LazyArray(shape, lambda: copied(data[start:end], dtype).reshape(shape))
