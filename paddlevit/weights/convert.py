"""From other people's parameter names and array layouts to ours, by the tables that the model classes carry.

A table is {'layout': 'torch' or 'paddle', 'rules': ((pattern, replacement), ...)} and, where a family needs them,
'structural': {last part of a name: function(shape) -> the only right content}, for buffers that the model builds
itself, 'subtracted': ((pattern, replacement), ...), for arrays to be subtracted from the one that the replacement
names, and 'notes', what a user should know of such files. Patterns and rules apply in their order, to our names after
the rules for `subtracted`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from paddle import nn

from paddlevit.safe_pickle import LazyArray
from paddlevit.weights.report import WeightsError, listing
from paddlevit.weights.unwrap import unwrap

# The parts of BatchNorm's names in which torch and Paddle differ; Paddle counts no batches.
_STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}
_COUNTER = "num_batches_tracked"
_OURS = {"ours": {"layout": "paddle", "rules": ()}}

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """What a model takes: shape of every parameter and buffer, which of them are linear weights, known sources."""

    shapes: dict[str, tuple[int, ...]]
    linear: frozenset[str]
    tables: dict[str, Table]

    @classmethod
    def of(cls, model: nn.Layer) -> Target:
        """The target that `model` is; a model class without `weight_sources` knows our names alone."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        layers = model.named_sublayers(include_self=True)
        linear = frozenset(f"{name}.weight".lstrip(".") for name, layer in layers if isinstance(layer, nn.Linear))
        return cls(shapes, linear, {**getattr(model, "weight_sources", {}), **_OURS})


@dataclass(frozen=True)
class Translated:
    """A state dict under our names, in our layout; `origin` gives the file's name for each of ours."""

    source: str
    arrays: dict[str, LazyArray]
    origin: dict[str, str]


def convert_state_dict(state: Mapping[str, Any], model: nn.Layer, source: str = "auto") -> dict[str, np.ndarray]:
    """`state` under our names and in Paddle's layout, dtypes kept (bfloat16 as float32), shapes not compared.

    `source` is one of official, timm, hf, paddlevit, ours, as far as the model's family has it; 'auto' recognises it.
    Raises WeightsError where the source is not recognised, an array has no counterpart in the model, or a structural
    buffer has an unexpected content.
    """
    target = Target.of(model)
    flat = unwrap(state).arrays
    translated = recognise(flat, target, source)
    strange = [translated.origin[name] for name in translated.arrays if name not in target.shapes]
    if strange:
        raise WeightsError(f"{len(strange)} arrays have no counterpart in the model: {listing(strange)}")
    dtypes = {name: flat[translated.origin[name]].read().dtype for name in translated.arrays}
    return {name: np.asarray(array.read(), dtypes[name], order="C") for name, array in translated.arrays.items()}


def recognise(state: dict[str, LazyArray], target: Target, source: str) -> Translated:
    """`state` translated from `source`, or for 'auto' from the source whose names and shapes fit best.

    Raises WeightsError for an unknown source, a state that fits none, or one that fits two in different layouts.
    """
    if source not in ("auto", *target.tables):
        raise WeightsError(f"source '{source}' is unknown for this model, allowed: auto, {', '.join(target.tables)}")
    names = list(target.tables) if source == "auto" else [source]
    candidates = [_translate(state, name, target) for name in names]
    # Where a head of another size leaves it open which way round its matrix is, ours is the more likely.
    best = max(candidates, key=lambda known: (_score(known, target), target.tables[known.source]["layout"] == "paddle"))
    if source == "auto":
        _check_recognised(best, candidates, state, target)
    _check_structural(state, target.tables[best.source])
    return best


def _translate(state: dict[str, LazyArray], source: str, target: Target) -> Translated:
    table = target.tables[source]
    structural = table.get("structural", ())
    arrays: dict[str, LazyArray] = {}
    origin: dict[str, str] = {}
    for theirs, array in state.items():
        leaf = theirs.rsplit(".", 1)[-1]
        if leaf == _COUNTER or leaf in structural:
            continue
        ours = _renamed(theirs, table)
        if ours in arrays:
            raise WeightsError(f"{theirs} and {origin[ours]} both stand for {ours}")
        if table["layout"] == "torch" and ours in target.linear and len(array.shape) == 2:
            array = array.then(np.transpose, array.shape[::-1])
        arrays[ours], origin[ours] = array, theirs
    for pattern, replacement in table.get("subtracted", ()):
        _subtract(arrays, pattern, replacement)
    return Translated(source, arrays, origin)


def _renamed(name: str, table: Table) -> str:
    for pattern, replacement in table["rules"]:
        name = re.sub(pattern, replacement, name)
    if table["layout"] == "torch":
        parent, dot, leaf = name.rpartition(".")
        name = parent + dot + _STATISTICS.get(leaf, leaf)
    return name


def _subtract(arrays: dict[str, LazyArray], pattern: str, replacement: str) -> None:
    """Takes the arrays that match out and subtracts each from its partner, as long as that has the same shape.

    In float64, so that nothing is rounded before it is known how exact the model is.
    """
    for name in [name for name in arrays if re.search(pattern, name)]:
        partner = re.sub(pattern, replacement, name)
        if partner in arrays and arrays[partner].shape == arrays[name].shape:
            arrays[partner] = _difference(arrays[partner], arrays.pop(name))


def _difference(array: LazyArray, term: LazyArray) -> LazyArray:
    return array.then(lambda value: value.astype(np.float64) - term.read(), term.shape)


def _score(candidate: Translated, target: Target) -> tuple[int, int]:
    found = [name for name in candidate.arrays if name in target.shapes]
    return 2 * len(found) - len(candidate.arrays), len(_fitting(candidate, target))


def _fitting(candidate: Translated, target: Target) -> set[str]:
    return {name for name, array in candidate.arrays.items() if target.shapes.get(name) == array.shape}


def _check_recognised(
    best: Translated, candidates: list[Translated], state: dict[str, LazyArray], target: Target
) -> None:
    if _score(best, target)[0] <= 0:
        raise WeightsError(
            f"the weights are of no source known for this model ({', '.join(target.tables)}): they are called "
            f"{listing(list(state))}; the model's are called {listing(list(target.shapes)[:3])}, ..."
        )
    if any(name.endswith(tuple(_STATISTICS.values())) for name in state):
        return  # names that only Paddle gives: of two layouts that fit alike, ours has been taken
    linear = _fitting(best, target) & target.linear
    for other in candidates:
        layouts = {target.tables[candidate.source]["layout"] for candidate in (best, other)}
        equal = _score(other, target) == _score(best, target) and _fitting(other, target) & target.linear == linear
        if linear and equal and len(layouts) == 2:
            raise WeightsError(
                f"the weights fit both {best.source} and {other.source}, which store linear weights transposed to "
                f"each other: name the source (source='{best.source}' or -source {best.source})"
            )


def _check_structural(state: dict[str, LazyArray], table: Table) -> None:
    for leaf, content in table.get("structural", {}).items():
        for name, array in state.items():
            if name.rsplit(".", 1)[-1] == leaf and not np.array_equal(array.read(), content(array.shape)):
                raise WeightsError(f"{name} is not what the model builds for the shape {list(array.shape)}")
