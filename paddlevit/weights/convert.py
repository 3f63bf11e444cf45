"""Other people's parameter names and array layouts to ours and back, by the tables that the model classes carry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Callable

import numpy as np
import paddle
from paddle import nn

from paddlevit.weights.report import WeightsError, listing
from paddlevit.weights.unwrap import unwrap

# What torch calls otherwise in BatchNorm; Paddle counts no batches.
_BATCH_NORM = ((".running_mean", "._mean"), (".running_var", "._variance"))
_COUNTER = "num_batches_tracked"
_HALF = (paddle.float16, paddle.bfloat16)

Beside = tuple[str, Callable[[tuple[int, ...]], np.ndarray]]


@dataclass(frozen=True)
class Table:
    """How a source stores a family's weights; the model class has these fields as a dict, by the source's name.

    layout      "torch" keeps linear weights as [out, in], "paddle" as [in, out]
    rules       (theirs, ours): parts of names, replaced one after the other. One that begins with a dot may stand
                anywhere, others at the start; {0} is a number counted from 0, {1} from 1.
    computed    what the model computes itself: end of our name -> (end of the name beside it, function of its shape)
    subtracted  end of our name -> end of the name of the array that it is subtracted from
    notes       what a user should know of such files
    """

    layout: str
    rules: tuple[tuple[str, str], ...] = ()
    computed: Mapping[str, Beside] = field(default_factory=dict)
    subtracted: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def torch(self) -> bool:
        return self.layout == "torch"

    def ours(self, name: str) -> str:
        return _renamed(name, [*self.rules, *(_BATCH_NORM if self.torch else ())])

    def theirs(self, name: str) -> str:
        rules = [*self.rules, *(_BATCH_NORM if self.torch else ())]
        return _renamed(name, [(ours, theirs) for theirs, ours in reversed(rules)])

    def beside(self) -> dict[str, Beside]:
        """All that their files have and our models do not, as `computed` has it."""
        counter: Beside = ("._variance", lambda _: np.zeros((), np.int64))
        zeros = {end: (other, lambda shape: np.zeros(shape, np.float32)) for end, other in self.subtracted.items()}
        return {**self.computed, **zeros, **({f".{_COUNTER}": counter} if self.torch else {})}


@dataclass(frozen=True)
class Target:
    """What a model takes: shape of every parameter and buffer, which of them are linear weights, known sources, and
    how the names of classifiers begin.
    """

    shapes: dict[str, tuple[int, ...]]
    linear: frozenset[str]
    tables: dict[str, Table]
    heads: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Layer) -> Target:
        """The target that `model` is; a model class without `weight_sources` knows our names alone."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        layers = model.named_sublayers(include_self=True)
        linear = frozenset(f"{name}.weight".lstrip(".") for name, layer in layers if isinstance(layer, nn.Linear))
        sources = {**getattr(model, "weight_sources", {}), "ours": {"layout": "paddle"}}
        tables = {name: Table(**fields) for name, fields in sources.items()}
        return cls(shapes, linear, tables, tuple(getattr(model, "head_prefixes", ())))


@dataclass(frozen=True)
class Translated:
    """A state dict under our names, in our layout; `origin` gives the file's name for each of ours.

    `fitting`: names whose arrays have the model's shapes. The source with the highest `score` is right.
    """

    source: str
    table: Table
    arrays: dict[str, np.ndarray]
    origin: dict[str, str]
    fitting: set[str]
    score: tuple[int, int]


def convert_state_dict(state: Mapping[str, Any], model: nn.Layer, source: str = "auto") -> dict[str, np.ndarray]:
    """`state` under our names and in Paddle's layout, dtypes kept (bfloat16 as float32), shapes not compared.

    `source` is one of official, timm, hf, paddlevit, ours, as far as the model's family has it; 'auto' recognises it.
    Raises WeightsError where the source is not recognised, an array has no counterpart in the model, or what the model
    computes itself has another content.
    """
    target = Target.of(model)
    flat = unwrap(state).arrays
    translated = recognise(flat, target, source)
    strange = [translated.origin[name] for name in translated.arrays if name not in target.shapes]
    if strange:
        raise WeightsError(f"{len(strange)} arrays have no counterpart in the model: {listing(strange)}")
    dtypes = {name: flat[translated.origin[name]].dtype for name in translated.arrays}
    return {name: np.asarray(array, dtypes[name], order="C") for name, array in translated.arrays.items()}


def export_state_dict(model: nn.Layer, layout: str) -> dict[str, np.ndarray]:
    """The inverse of `convert_state_dict`: the model's weights as `layout`, one of its sources, stores them.

    Half precision becomes float32. Raises WeightsError where that project does not have the model's family.
    """
    target = Target.of(model)
    if layout not in target.tables:
        raise WeightsError(f"layout must be one of {', '.join(target.tables)} for this model, got {layout!r}")
    table = target.tables[layout]
    exported = {}
    for name, tensor in model.state_dict().items():
        values = (tensor.astype("float32") if tensor.dtype in _HALF else tensor).numpy()
        transposed = table.torch and name in target.linear
        exported[table.theirs(name)] = np.asarray(values.T if transposed else values, order="C")
        for end, (other, content) in table.beside().items():
            if name.endswith(other):
                exported[table.theirs(name[: -len(other)] + end)] = content(values.shape)
    return exported


def recognise(state: dict[str, np.ndarray], target: Target, source: str) -> Translated:
    """`state` translated from `source`, or for 'auto' from the source whose names and shapes fit best.

    Raises WeightsError for an unknown source, a state that fits none, or one that fits two in different layouts.
    """
    if source not in ("auto", *target.tables):
        raise WeightsError(f"source '{source}' is unknown for this model, allowed: auto, {', '.join(target.tables)}")
    candidates = [_translate(state, name, target) for name in (target.tables if source == "auto" else [source])]
    # Where a head of another size leaves it open which way round its matrix is, ours is the more likely.
    best = max(candidates, key=lambda known: (known.score, not known.table.torch))
    if source == "auto":
        _check_recognised(best, candidates, state, target)
    _check_computed(best, state, target)
    return best


def _translate(state: dict[str, np.ndarray], source: str, target: Target) -> Translated:
    table = target.tables[source]
    arrays: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for theirs, array in state.items():
        ours = table.ours(theirs)
        if ours.endswith((_COUNTER, *table.computed)):
            continue
        if ours in arrays:
            raise WeightsError(f"{theirs} and {origin[ours]} both stand for {ours}")
        transposed = table.torch and ours in target.linear and array.ndim == 2
        arrays[ours], origin[ours] = array.T if transposed else array, theirs
    for end, other in table.subtracted.items():
        for name in [name for name in arrays if name.endswith(end)]:
            partner = name[: -len(end)] + other
            if partner in arrays and arrays[partner].shape == arrays[name].shape:
                # In float64, so that nothing is rounded before it is known how exact the model is.
                arrays[partner] = arrays[partner].astype(np.float64) - arrays.pop(name)
    known = [name for name in arrays if name in target.shapes]
    fitting = {name for name in known if target.shapes[name] == arrays[name].shape}
    return Translated(source, table, arrays, origin, fitting, (2 * len(known) - len(arrays), len(fitting)))


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        name = _rule(old, new)(name)
    return name


@cache
def _rule(old: str, new: str) -> Callable[[str], str]:
    """Replaces `old`, parts of names as in `Table.rules`, by `new`."""
    place = re.compile(r"\{(\d)\}")
    first = [int(number) for number in place.findall(old)]
    words = r"(\d+)".join(re.escape(words) for words in re.split(r"\{\d\}", old))
    pattern = re.compile(words if old.startswith(".") else f"^{words}")

    def replacement(match: re.Match[str]) -> str:
        counts = (int(number) - start for number, start in zip(match.groups(), first))
        return place.sub(lambda start: str(next(counts) + int(start[1])), new)

    return lambda name: pattern.sub(replacement, name)


def _check_recognised(
    best: Translated, candidates: list[Translated], state: dict[str, np.ndarray], target: Target
) -> None:
    if best.score[0] <= 0:
        raise WeightsError(
            f"the weights are of no source known for this model ({', '.join(target.tables)}): they are called "
            f"{listing(list(state))}; the model's are called {listing(list(target.shapes)[:3])}, ..."
        )
    if any(name.endswith(("_mean", "_variance")) for name in state):
        return  # names that only Paddle gives: of two layouts that fit alike, ours has been taken
    linear = best.fitting & target.linear
    for other in candidates:
        equal = other.score == best.score and other.fitting & target.linear == linear
        if linear and equal and other.table.torch != best.table.torch:
            raise WeightsError(
                f"the weights fit both {best.source} and {other.source}, which store linear weights transposed to "
                f"each other: name the source (source='{best.source}' or -source {best.source})"
            )


def _check_computed(best: Translated, state: dict[str, np.ndarray], target: Target) -> None:
    for end, (other, content) in best.table.computed.items():
        for name, array in state.items():
            ours = best.table.ours(name)
            beside = ours[: -len(end)] + other
            known = ours.endswith(end) and beside in best.fitting
            if known and not np.array_equal(array, content(target.shapes[beside])):
                raise WeightsError(f"{name} is not what the model computes from its shapes")
