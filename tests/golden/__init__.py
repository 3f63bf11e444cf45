"""Reference numbers of the published networks, computed once with the official implementations.

No weights are stored: every reference ran on weights that a hash of the parameter's name generates, so any program can
build them again from the names and shapes of a checkpoint. This folder holds those names and shapes for every
network and checkpoint format, the logits of some, and five short training runs.

Formats are official (the authors' torch code), timm, hf (transformers' CvT) and paddlevit (PaddleViT's `.pdparams`).
Each format draws from its own names, so the files of one network carry different weights and give different logits.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import paddle
from paddle import nn

from paddlevit import build_model

_FOLDER = Path(__file__).parent
_TOKEN_LIKE = ("pos_embed", "cls_token", "dist_token", "relative_position_bias_table")
_GAIN = {2: 1.25, 4: 0.85}


@cache
def _read(name: str) -> Any:
    with gzip.open(_FOLDER / name, "rt") as file:
        return json.load(file)


def cases(logits: bool = False) -> list[Sequence[str]]:
    """Every (model, format), or only those that have reference logits."""
    index = _read("index.json.gz")["models"]
    return [(m, f) for m, info in index.items() for f, case in info["formats"].items() if case["logits"] or not logits]


def info(model: str) -> dict[str, Any]:
    """family, image_size, batch, params, macs_g, published, training, and formats with their own figures."""
    return _read("index.json.gz")["models"][model]


def manifest(model: str, fmt: str) -> dict[str, Any]:
    """layout ('torch' or 'paddle'), image_size, batch, and entries [name, shape, dtype, kind] in order.

    kind is param, buffer (statistics of BatchNorm) or 'buffer: structural' (HRFormer's relative_position_index).
    """
    return _read("manifests.json.gz")[f"{model}.{fmt}"]


def names_and_shapes(model: str) -> dict[str, list[int]]:
    """Our names and shapes in our order: PaddleViT's, and of HRFormer the official ones in Paddle's layout."""
    if not model.startswith("hrt"):
        entries = manifest(model, "paddlevit")["entries"]
        # PaddleViT's RegNetY has a bias before a normalisation, which the official network does not have.
        return {key: shape for key, shape, _, _ in entries if not key.endswith(".conv3.bias")}
    ours = {}
    for key, shape, _, _ in manifest(model, "official")["entries"]:
        if not key.endswith(("num_batches_tracked", "relative_position_index")):
            linear = len(shape) == 2 and not key.endswith("relative_position_bias_table")
            key = key.replace("running_mean", "_mean").replace("running_var", "_variance")
            ours[key] = shape[::-1] if linear else shape
    return ours


def relative_position_index(window: int = 7) -> np.ndarray:
    """int64 [window^2, window^2]: the row of the bias table that a pair of tokens of a window reads."""
    row, col = np.divmod(np.arange(window * window), window)
    row_offset = row[:, None] - row[None, :] + window - 1
    col_offset = col[:, None] - col[None, :] + window - 1
    return (row_offset * (2 * window - 1) + col_offset).astype(np.int64)


def golden_array(key: str, shape: Sequence[int], seed: int, layout: str) -> np.ndarray:
    """The generated value of the parameter `key`; the last part of its name and its rank decide its distribution."""
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    if leaf in ("running_var", "_variance"):
        return rng.uniform(0.5, 1.5, size=shape).astype(np.float32)
    values = rng.standard_normal(shape)
    if leaf in _TOKEN_LIKE:
        values = 0.2 * values
    elif len(shape) <= 1:
        values = 0.1 * values
        if leaf == "weight":
            values = 1.0 + values
    else:
        fan_in = shape[0] if layout == "paddle" and len(shape) == 2 else int(np.prod(shape[1:]))
        values = values * (_GAIN[len(shape)] / np.sqrt(float(fan_in)))
    return values.astype(np.float32)


def golden_state(model: str, fmt: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The whole generated checkpoint of `model` in format `fmt`, names in its own order."""
    entries = manifest(model, fmt)
    state = {}
    for key, shape, _, kind in entries["entries"]:
        if kind == "buffer: structural":
            state[key] = relative_position_index(int(round(shape[0] ** 0.5)))
        else:
            state[key] = golden_array(key, shape, seed, entries["layout"])
    return state


def golden_images(seed: int, batch: int, size: int) -> np.ndarray:
    """float32 [batch, 3, size, size], standard normal; nothing is normalised on top."""
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    return rng.standard_normal((batch, 3, size, size)).astype(np.float32)


def reference(model: str, fmt: str) -> dict[str, np.ndarray]:
    """Float64 outputs for seed 0 and images `golden_images(0, batch, image_size)`.

    `logits_f64` [batch, classes] always; `train_cls_f64` and `train_dist_f64` for distilled PiT (training mode, no
    dropout); `logits_conv3_bias_zero_f64` for PaddleViT's RegNetY. A right float32 run is compared with them too.
    """
    prefix = f"{model}.{fmt}/"
    with np.load(_FOLDER / "forward.npz") as arrays:
        return {key[len(prefix) :]: arrays[key] for key in arrays.files if key.startswith(prefix)}


def tolerance(model: str, fmt: str) -> dict[str, float]:
    """Largest |y - logits_f64| of a right run: {'float32': 5 x the reference's own rounding, 'float64': 1e-8}."""
    case = info(model)["formats"][fmt]
    return {"float32": case["atol_f32"], "float64": case["atol_f64"]}


def training(model: str) -> dict[str, Any]:
    """Losses, gradient norms and five AdamW steps from the official format's weights; `tolerance` holds the limits."""
    return _read("training.json.gz")[model]


def checksum(state: dict[str, np.ndarray]) -> int:
    """CRC-32 over names and arrays in order; `info(model)['formats'][fmt]['state_crc32']` is the right one."""
    crc = 0
    for key, array in state.items():
        crc = zlib.crc32(key.encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def images_checksum(seed: int, batch: int, size: int) -> int:
    """The right `checksum({"x": images})` of `golden_images(seed, batch, size)`."""
    return _read("index.json.gz")["images_crc32"][f"seed {seed}, batch {batch}, size {size}"]


@contextmanager
def from_zeros() -> Iterator[None]:
    """Networks that are built meanwhile start from zeros: CvT-W24 takes 12 s to draw its initial values."""
    nn.initializer.set_global_initializer(nn.initializer.Constant(0.0))
    with mock.patch.object(nn.Layer, "apply", lambda self, function: self):
        yield
    nn.initializer.set_global_initializer(None)


def empty_network(model: str, dtype: str = "float32") -> nn.Layer:
    """The network, to be filled, in evaluation."""
    paddle.set_default_dtype(dtype)
    with from_zeros():
        network = build_model(model)
    paddle.set_default_dtype("float32")
    network.eval()
    return network
