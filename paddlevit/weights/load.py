"""The one loader: any known weights file into a network, or an error that says what does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlevit.weights.convert import Target, Translated, recognise
from paddlevit.weights.lazy import LazyArray, naming
from paddlevit.weights.readers import find, flatten, open_state_dict
from paddlevit.weights.report import LoadReport, WeightsError, listing
from paddlevit.weights.resize import can_resize, resize_position_embedding

logger = logging.getLogger(__name__)


def load_weights(
    model: nn.Layer,
    path_or_state: str | os.PathLike[str] | Mapping[str, Any],
    *,
    source: str = "auto",
    reinit: Sequence[str] = (),
    new_head: bool = False,
    strict: bool = True,
) -> LoadReport:
    """Fills `model` from a weights file or state dict of any known source; returns what became of each name.

    Values are cast to the parameters' dtype; position embeddings are interpolated to the network's image size.
    Parameters whose name begins with one of `reinit` keep their values, whatever the file has for them; with `new_head`
    so does the classifier where the file has another number of classes, which a warning says. Where anything else is
    missing, unexpected or of another shape, WeightsError lists it and the network stays as it was;
    `strict=False` loads what fits and logs the rest. WeightsError also for a damaged file (which may be noticed when
    some parameters are filled already), MissingFileError where there is none. One array is in memory at a time.
    """
    if isinstance(path_or_state, Mapping):
        where, state = "the state dict", flatten(path_or_state)
    else:
        where, state = find(path_or_state), open_state_dict(path_or_state)
    target = Target.of(model)
    with naming(where):
        translated = recognise(state, target, source)
    heads = tuple(getattr(model, "head_prefixes", ()))
    kept = (reinit,) if isinstance(reinit, str) else tuple(reinit)
    classes = _classes(translated.arrays, target, heads) if new_head else (0, 0)
    if classes[0] != classes[1]:
        logger.warning("%s has %d classes, the model %d: it starts with a new classifier", where, *classes)
        kept += heads
    plan = _plan(translated, target, kept)
    # A plain PiT has no second head, but callers may pass on every head prefix of its class.
    idle = [prefix for prefix in plan.idle if prefix not in heads]
    if idle:
        raise WeightsError(f"reinit names '{idle[0]}', but no parameter begins so")
    problems = plan.problems(translated, target)
    if problems:
        text = "\n".join([*problems, *_hints(plan, translated, target, heads)])
        if strict:
            raise WeightsError(f"{where} (source {translated.source}) does not fit the network\n{text}")
        logger.warning("%s: loaded in part\n%s", where, text)
    parameters = model.state_dict()
    for name, array in plan.arrays.items():
        with naming(where):
            values = array.read()
        _fill(parameters[name], values)
    return plan.report


@dataclass
class _Plan:
    """What to fill with what; `excused` are unexpected names that `reinit` covers, `idle` what it has for none."""

    report: LoadReport
    arrays: dict[str, LazyArray] = field(default_factory=dict)
    excused: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def problems(self, translated: Translated, target: Target) -> list[str]:
        """One line per kind of misfit, with names and shapes."""
        shapes, arrays = target.shapes, translated.arrays
        missing = [f"{name} {list(shapes[name])}" for name in self.report.missing]
        unexpected = [
            f"{translated.origin[name]} {list(array.shape)}"
            for name, array in arrays.items()
            if name not in shapes and name not in self.excused
        ]
        mismatched = [
            f"{name} {list(arrays[name].shape)} (network: {list(shapes[name])})" for name in self.report.mismatched
        ]
        kinds = (
            ("missing in the file", missing),
            ("unknown to the network", unexpected),
            ("of another shape in the file", mismatched),
        )
        return [f"{len(items)} {kind}: {listing(items)}" for kind, items in kinds if items]


def _plan(translated: Translated, target: Target, reinit: tuple[str, ...]) -> _Plan:
    arrays, shapes = translated.arrays, target.shapes
    plan = _Plan(LoadReport(translated.source))
    for name, shape in shapes.items():
        array = arrays.get(name)
        if reinit and name.startswith(reinit):
            plan.report.reinitialised.append(name)
        elif array is None:
            plan.report.missing.append(name)
        elif array.shape == shape:
            plan.arrays[name] = array
        elif can_resize(name, array.shape, shape):
            plan.arrays[name] = _resized(name, array, shape)
            plan.report.resized.append(name)
        else:
            plan.report.mismatched.append(name)
    plan.report.loaded = list(plan.arrays)
    plan.report.unexpected = [translated.origin[name] for name in arrays if name not in shapes]
    plan.idle = [prefix for prefix in reinit if not any(name.startswith(prefix) for name in [*shapes, *arrays])]
    plan.excused = [name for name in arrays if reinit and name.startswith(reinit)]
    return plan


def _classes(arrays: Mapping[str, LazyArray], target: Target, heads: tuple[str, ...]) -> tuple[int, int]:
    """How many classes the file has and how many the model, where both or only the file have a classifier."""
    there = [name for name in arrays if heads and name.startswith(heads)]
    ours = [name for name in target.shapes if heads and name.startswith(heads)]
    name = next((name for name in there if name in ours or not ours), None)
    return (arrays[name].shape[-1], target.shapes[name][-1] if ours else 0) if name else (0, 0)


def _resized(name: str, array: LazyArray, shape: tuple[int, ...]) -> LazyArray:
    def change(values: np.ndarray) -> np.ndarray:
        return resize_position_embedding(name, values.astype(np.float64), shape)

    return array.then(change, shape)


def _hints(plan: _Plan, translated: Translated, target: Target, heads: tuple[str, ...]) -> list[str]:
    """What the user can do about the two usual misfits: another number of classes, and distilled against plain."""
    hints = []
    classes = [name for name in plan.report.mismatched if heads and name.startswith(heads)]
    elsewhere = [name for name in plan.report.mismatched if name not in classes]
    prefixes = tuple(prefix for prefix in heads if any(key.startswith(prefix) for key in target.shapes))
    if heads and not prefixes:
        hints.append(
            f"the network has no classifier (MODEL.NUM_CLASSES 0): leave that of the file out by reinit={heads}"
        )
    if classes and not elsewhere:
        name = classes[0]
        hints.append(
            f"the file has {translated.arrays[name].shape[-1]} classes, the network {target.shapes[name][-1]}: set "
            f"MODEL.NUM_CLASSES, or start with a new classifier (reinit={prefixes} in Python, -reinit_head on the "
            "command line)"
        )
    distilled = [any(name.startswith("head_dist.") for name in names) for names in (translated.arrays, target.shapes)]
    if distilled[0] != distilled[1] and "head_dist." in heads:
        who = ("the file is of a distilled network, the network", "the network is distilled, the file")
        hints.append(
            f"{who[0 if distilled[0] else 1]} is not (it has one token and one head less): see MODEL.DISTILLED"
        )
    return hints


def _fill(parameter: Tensor, values: np.ndarray) -> None:
    dtype = str(parameter.dtype).rsplit(".", 1)[-1]
    if dtype == "bfloat16":
        parameter.set_value(paddle.to_tensor(values.astype(np.float32)).astype(dtype))
    else:
        parameter.set_value(values.astype(dtype, copy=False))
