"""The one loader: any known weights file into a model, or an error that says what does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlevit.safe_pickle import LazyArray
from paddlevit.weights.convert import Target, Translated, recognise
from paddlevit.weights.readers import find, naming, open_state_dict
from paddlevit.weights.report import LoadReport, WeightsError, listing
from paddlevit.weights.resize import can_resize, resize_position_embedding
from paddlevit.weights.unwrap import unwrap

logger = logging.getLogger(__name__)


def load_weights(
    model: nn.Layer,
    path_or_state: str | os.PathLike[str] | Mapping[str, Any],
    *,
    which: str = "model",
    source: str = "auto",
    reinit: Sequence[str] = (),
    new_head: bool = False,
    strict: bool = True,
) -> LoadReport:
    """Fills `model` from a weights file or state dict of any known source; returns what became of each name.

    `which` 'ema' takes the moving average where a training checkpoint has one. Values are cast to the parameters'
    dtype; position embeddings are interpolated to the model's image size. Parameters whose name begins with one of
    `reinit` keep their values, whatever the file has for them; with `new_head` so does the classifier where the file
    has none or one of other classes, which a warning says. Where anything else is missing, unexpected or of another
    shape, WeightsError lists it and the model stays as it was; `strict=False` loads what fits and logs the rest.
    WeightsError also for a damaged file (which may be noticed when some parameters are filled already),
    MissingFileError where there is none. One array is in memory at a time.
    """
    if isinstance(path_or_state, Mapping):
        where, state = "the state dict", unwrap(path_or_state, which)
    else:
        where, state = find(path_or_state), open_state_dict(path_or_state, which)
    target = Target.of(model)
    with naming(where):
        translated = recognise(state.arrays, target, source)
    heads = tuple(getattr(model, "head_prefixes", ()))
    reinit = (reinit,) if isinstance(reinit, str) else tuple(reinit)
    _check_prefixes(reinit, heads, [*target.shapes, *translated.arrays])
    report, arrays = _compare(translated, target, reinit)
    report.notes = [*state.notes, *translated.table.notes]
    misfits = _misfits(report, translated, target, reinit)
    if any(misfits.values()):
        names = [name for kind in misfits.values() for name in kind]
        but_heads = heads if heads and all(name.startswith(heads) for name in names) else ()
        reasons = _reasons(translated, target, but_heads)
        if new_head and but_heads:
            logger.warning("%s: %s: it starts with a new classifier", where, reasons[0])
            kept = (*reinit, *heads)
            return load_weights(model, path_or_state, which=which, source=source, reinit=kept, strict=strict)
        lines = [f"{len(kind)} {what}: {listing(list(kind.values()))}" for what, kind in misfits.items() if kind]
        text = "\n".join([*lines, *reasons])
        if strict:
            raise WeightsError(f"{where} (source {translated.source}) does not fit the model\n{text}", but_heads)
        logger.warning("%s: loaded in part\n%s", where, text)
    parameters = model.state_dict()
    for name, array in arrays.items():
        with naming(where):
            values = array.read()
        if not np.isfinite(values).all():
            report.nonfinite.append(name)
        _fill(parameters[name], values)
    return report


def _check_prefixes(reinit: tuple[str, ...], heads: tuple[str, ...], names: list[str]) -> None:
    for prefix in reinit:
        # A plain PiT has no second head, but callers may pass on every head prefix of its class.
        if prefix not in heads and not any(name.startswith(prefix) for name in names):
            raise WeightsError(f"reinit has the prefix {prefix!r}, but no parameter's name begins so")


def _compare(
    translated: Translated, target: Target, reinit: tuple[str, ...]
) -> tuple[LoadReport, dict[str, LazyArray]]:
    """What becomes of each parameter, and what to fill it with."""
    report, arrays = LoadReport(translated.source), {}
    for name, shape in target.shapes.items():
        array = translated.arrays.get(name)
        if reinit and name.startswith(reinit):
            report.reinitialised.append(name)
        elif array is None:
            report.missing.append(name)
        elif array.shape == shape:
            arrays[name] = array
        elif can_resize(name, array.shape, shape):
            arrays[name] = _resized(name, array, shape)
            report.resized.append(name)
        else:
            report.mismatched.append(name)
    report.loaded = list(arrays)
    report.unexpected = [translated.origin[name] for name in translated.arrays if name not in target.shapes]
    return report, arrays


def _resized(name: str, array: LazyArray, shape: tuple[int, ...]) -> LazyArray:
    return array.then(lambda values: resize_position_embedding(name, values.astype(np.float64), shape), shape)


def _misfits(
    report: LoadReport, translated: Translated, target: Target, reinit: tuple[str, ...]
) -> dict[str, dict[str, str]]:
    """Our names by kind of misfit, each with what to say of it."""
    ours, theirs = target.shapes, {name: array.shape for name, array in translated.arrays.items()}
    unexpected = [name for name in theirs if name not in ours and not (reinit and name.startswith(reinit))]
    return {
        "missing in the file": {name: f"{name} {list(ours[name])}" for name in report.missing},
        "unknown to the model": {name: f"{translated.origin[name]} {list(theirs[name])}" for name in unexpected},
        "of another shape in the file": {
            name: f"{name} {list(theirs[name])} (model: {list(ours[name])})" for name in report.mismatched
        },
    }


def _reasons(translated: Translated, target: Target, heads: tuple[str, ...]) -> list[str]:
    """The usual reason of a misfit, where it is one: the classifier, if only `heads` misfit, or distillation."""
    both = {name: array.shape for name, array in translated.arrays.items()}, target.shapes
    if heads:
        theirs, ours = (next((shape[-1] for name, shape in of.items() if name.startswith(heads)), 0) for of in both)
        return [
            f"the file has {theirs} classes, the model {ours} (MODEL.NUM_CLASSES)"
            if theirs
            else "the file has no classifier"
        ]
    file, model = ("is" if any(name.startswith("head_dist.") for name in of) else "is not" for of in both)
    if file != model:
        return [f"the file {file} of a distilled model, this model {model} distilled (MODEL.DISTILLED)"]
    return []


def _fill(parameter: Tensor, values: np.ndarray) -> None:
    dtype = str(parameter.dtype).rsplit(".", 1)[-1]
    if dtype == "bfloat16":
        parameter.set_value(paddle.to_tensor(values.astype(np.float32)).astype(dtype))
    else:
        parameter.set_value(values.astype(dtype, copy=False))
