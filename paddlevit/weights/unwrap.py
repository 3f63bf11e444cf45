"""The weights in what a training program saved: taken out of its dicts, and the wrappers' prefixes off their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from paddlevit.safe_pickle import LazyArray, Placeholder
from paddlevit.weights.report import WeightsError, listing

# Where training programs keep the weights, and their moving average; the first that holds arrays counts.
_MODEL = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "params")
_EMA = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_state", "ema_model", "ema", "params_ema")
# What wrappers put before names; more than half of the names begin so, since a Lightning module has parts beside its
# model and torch's AveragedModel counts. A compiled or sharded part has its wrapper inside of the name.
_PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "_layers.")
_EMA_PREFIXES = ("model_ema.", "ema_model.")
_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_DEEPEST = 4  # wrappers around each other
_PADDLE_NAMES = "StructuredToParameterName@@"  # an entry of Paddle's files with the names of its tensors
# How many times larger than its file the arrays may be: some are stored once and used under several names, or repeat
# what is stored. Beyond that, a small file is about to fill the memory.
_MOST_REPEATED = 8


@dataclass
class StateDict:
    """Weights by name; `notes` say where they were found and what was left out."""

    arrays: dict[str, np.ndarray]
    notes: list[str]


def unwrap(content: Any, which: str = "model", *, size: int | None = None) -> StateDict:
    """The weights inside of whatever a file of `size` bytes or a caller gave, or with `which` 'ema' their average.

    'model' takes the average where there is nothing else. Raises WeightsError where there are no weights.
    """
    if which not in ("model", "ema"):
        raise WeightsError(f"which must be 'model' or 'ema', got {which!r}")
    if not isinstance(content, Mapping):
        raise WeightsError(f"the file holds a {_kind(content)}, not a dict of weights")
    content, averaged, notes = _innermost(content, which)
    content = {name: _array(value) for name, value in content.items() if name != _PADDLE_NAMES}
    texts = [name for name in content if isinstance(name, str)]
    names = _plain_names(texts, "model" if averaged else which)
    outside = [name for name in texts if name not in names]
    if outside:
        notes.append(f"left out of the state dict: {listing(outside)}")
    weights = {name: value for name, value in content.items() if name in names or not isinstance(name, str)}
    strange = [f"{n} ({_kind(v)})" for n, v in weights.items() if not (n in names and isinstance(v, LazyArray))]
    if strange or not weights:
        what = f"entries that are not arrays: {listing(strange)}" if strange else "no entries"
        raise WeightsError(f"the state dict has {what}; weights are looked for in {', '.join(_MODEL)} or at the top")
    if size is not None and sum(4 * prod(array.shape) for array in weights.values()) > _MOST_REPEATED * size + 2**24:
        raise WeightsError(f"the file has {size} bytes, too few for the arrays that it describes")
    return StateDict({short: weights[name].read() for name, short in names.items()}, notes)


def _innermost(content: Mapping, which: str) -> tuple[Mapping, bool, list[str]]:
    """The dict that holds the weights, whether they are an average, and notes on the dicts around it."""
    keys, averaged, notes = _EMA + _MODEL if which == "ema" else _MODEL + _EMA, False, []
    for _ in range(_DEEPEST):
        inner = [key for key in keys if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        key = next((key for key in inner if _holds_arrays(content[key], keys)), inner[0])
        others = [str(other) for other in content if other != key]
        notes.append(f"weights under '{key}'" + (f", left out: {listing(others)}" if others else ""))
        content, averaged = content[key], averaged or key in _EMA
    return content, averaged, notes


def _plain_names(names: list[str], which: str) -> dict[str, str]:
    """The names that are the model's, or its average's, each with what it is without wrappers."""
    plain = {name: _INSIDE.sub("", name) for name in names}
    average = {name: short for name, short in plain.items() if short.startswith(_EMA_PREFIXES)}
    if which == "ema" and not average:
        raise WeightsError(f"the file has no EMA weights (looked for: {', '.join([*_EMA, *_EMA_PREFIXES])})")
    if which == "ema":
        plain = {name: short.partition(".")[2] for name, short in average.items()}
    elif len(average) < len(plain):
        plain = {name: short for name, short in plain.items() if name not in average}
    for _ in range(_DEEPEST):
        for prefix in _PREFIXES:
            inside = {name: short[len(prefix) :] for name, short in plain.items() if short.startswith(prefix)}
            plain = inside if 2 * len(inside) > len(plain) else plain
    if len(set(plain.values())) < len(plain):
        raise WeightsError("two names are equal without what wrappers add to them (module., _orig_mod. and the like)")
    return plain


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Placeholder) else type(value).__name__


def _holds_arrays(content: Mapping, keys: tuple[str, ...]) -> bool:
    """Whether there are arrays in a dict or in those that it has under `keys`: it may be the model's configuration."""
    inner = [content[key] for key in keys if isinstance(content.get(key), Mapping)]
    return any(isinstance(_array(value), LazyArray) for each in (content, *inner) for value in each.values())


def _array(value: Any) -> Any:
    """`value` as a LazyArray, with bfloat16 as float32, where it is an array; else as it is.

    Paddle 2.1 and later save a tensor of a nested dict as (its name, its array). NumPy has no bfloat16: Paddle and our
    readers hand over its bits as uint16.
    """
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    if not hasattr(value, "shape"):
        return value

    def read() -> np.ndarray:
        array = value.read() if isinstance(value, LazyArray) else np.asarray(value)
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32) if array.dtype == np.uint16 else array

    return LazyArray(value.shape, read)
