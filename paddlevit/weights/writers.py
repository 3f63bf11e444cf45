"""Writers of weights files, by suffix: arrays by name, under the names that they are given, readable by anyone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle

from paddlevit.weights.readers import SAFETENSORS
from paddlevit.weights.torch_files import write_zip


def _write_paddle(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    paddle.save({name: paddle.to_tensor(array, place="cpu") for name, array in arrays.items()}, str(path))


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    kinds = {code: kind for kind, code in SAFETENSORS.items()}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers wants it
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": kinds[array.dtype.str[1:]], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.data if array.size else b"")


WRITERS = {".pdparams": _write_paddle, ".safetensors": _write_safetensors, ".pth": write_zip}
