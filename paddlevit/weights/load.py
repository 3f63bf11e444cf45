"""The one loader: any known weights file into a model, or an error that says what does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddlevit.weights.convert import Target, Translated, recognise
from paddlevit.weights.readers import find, naming, open_state_dict
from paddlevit.weights.report import LoadReport, WeightsError, listing
from paddlevit.weights.resize import can_resize, resize_position_embedding
from paddlevit.weights.unwrap import StateDict, unwrap

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
    shape, or the file damaged, WeightsError says so and the model stays as it was; `strict=False` loads what fits.
    """
    where, state = _open(path_or_state, which)
    target = Target.of(model)
    with naming(where):
        translated = recognise(state.arrays, target, source)
    kept = _prefixes(reinit, target.heads, [*target.shapes, *translated.arrays])
    report, arrays, misfits = _compare(translated, target, kept)
    names = [name for kind in misfits.values() for name in kind]
    but_heads = target.heads if names and all(name.startswith(target.heads) for name in names) else ()
    reason = _reason(translated, target, but_heads)
    if new_head and but_heads:
        how = "it starts with a new classifier" if _classes(target.shapes, target.heads) else "its classifier is unused"
        logger.warning("%s: %s: %s", where, reason, how)
        report, arrays, _ = _compare(translated, target, (*kept, *target.heads))
    elif names:
        lines = [f"{len(kind)} {what}: {listing(list(kind.values()))}" for what, kind in misfits.items() if kind]
        text = "\n".join([*lines, reason]).rstrip()
        if strict:
            raise WeightsError(f"{where} (source {translated.source}) does not fit the model\n{text}", but_heads)
        logger.warning("%s: loaded in part\n%s", where, text)
    report.notes = [*state.notes, *translated.table.notes]
    _fill(model, arrays, report)
    return report


def _open(path_or_state: str | os.PathLike[str] | Mapping[str, Any], which: str) -> tuple[str, StateDict]:
    """What to call the weights in a message, and the weights."""
    if isinstance(path_or_state, Mapping):
        with naming("the state dict"):
            return "the state dict", unwrap(path_or_state, which)
    where = find(path_or_state)
    return where, open_state_dict(where, which)


def _prefixes(reinit: str | Sequence[str], heads: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """`reinit`, of which every prefix that is no head's must begin one of `names`."""
    kept = (reinit,) if isinstance(reinit, str) else tuple(reinit)
    for prefix in kept:
        # A plain PiT has no second head, but callers may pass on every head prefix of its class.
        if prefix not in heads and not any(name.startswith(prefix) for name in names):
            raise WeightsError(f"reinit has the prefix {prefix!r}, but no parameter's name begins so")
    return kept


def _compare(
    translated: Translated, target: Target, kept: tuple[str, ...]
) -> tuple[LoadReport, dict[str, np.ndarray], dict[str, dict[str, str]]]:
    """What becomes of each parameter, what to fill it with, and what to say of each misfit by its kind and our name."""
    report, arrays = LoadReport(translated.source), {}
    missing, unknown, misshapen = {}, {}, {}
    for name, shape in target.shapes.items():
        array = translated.arrays.get(name)
        if name.startswith(kept):
            report.reinitialised.append(name)
        elif array is None:
            missing[name] = f"{name} {list(shape)}"
        elif array.shape == shape:
            arrays[name] = array
        elif can_resize(name, array.shape, shape):
            arrays[name] = resize_position_embedding(name, array.astype(np.float64), shape)
            report.resized.append(name)
        else:
            misshapen[name] = f"{name} {list(array.shape)} (model: {list(shape)})"
    for name, array in translated.arrays.items():
        if name not in target.shapes:
            report.unexpected.append(translated.origin[name])
            if not name.startswith(kept):
                unknown[name] = f"{translated.origin[name]} {list(array.shape)}"
    report.loaded, report.missing, report.mismatched = list(arrays), list(missing), list(misshapen)
    misfits = {"missing in the file": missing, "unknown to the model": unknown}
    return report, arrays, {**misfits, "of another shape in the file": misshapen}


def _reason(translated: Translated, target: Target, but_heads: tuple[str, ...]) -> str:
    """The usual reason of a misfit, where it is one: the classifier, if only `but_heads` misfit, or distillation."""
    theirs, ours = {name: array.shape for name, array in translated.arrays.items()}, target.shapes
    if but_heads:
        file, model = _classes(theirs, but_heads), _classes(ours, but_heads)
        known = f"the file has {file} classes, the model {model} (MODEL.NUM_CLASSES)" if file != model else ""
        return known if file else "the file has no classifier"
    distilled = [any(name.startswith("head_dist.") for name in of) for of in (theirs, ours)]
    if distilled[0] == distilled[1]:
        return ""
    file_is, model_is = ("is" if is_so else "is not" for is_so in distilled)
    return f"the file {file_is} of a distilled model, this model {model_is} distilled (MODEL.DISTILLED)"


def _classes(shapes: Mapping[str, tuple[int, ...]], heads: tuple[str, ...]) -> int:
    return next((shape[-1] for name, shape in shapes.items() if name.startswith(heads)), 0)


def _fill(model: nn.Layer, arrays: dict[str, np.ndarray], report: LoadReport) -> None:
    parameters = model.state_dict()
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            report.nonfinite.append(name)
        dtype = str(parameters[name].dtype).rsplit(".", 1)[-1]
        if dtype == "bfloat16":  # which NumPy does not have
            parameters[name].set_value(paddle.to_tensor(values.astype(np.float32)).astype(dtype))
        else:
            parameters[name].set_value(values.astype(dtype, copy=False))
