"""Averages of weights of one model (model soups, Wortsman et al. 2022), no worse than the best of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from paddle import nn
from yacs.config import CfgNode

from paddlevit.data import build_eval_loader, build_train_loader
from paddlevit.data.classes import Classes, classes_beside, refuse_difference
from paddlevit.errors import UserError
from paddlevit.models import build_model
from paddlevit.run.build import autocast, with_classes
from paddlevit.run.folder import best_path
from paddlevit.training import checkpoint
from paddlevit.training.engine import evaluate
from paddlevit.training.journal import progress
from paddlevit.training.optim import freeze
from paddlevit.training.running_statistics import changing_norms, estimate
from paddlevit.training.scores import rank
from paddlevit.weights import load_weights

_BATCHES = 100  # that BatchNorm's statistics are estimated on, at most


class Scored(NamedTuple):
    """A file, or the average of several, and its metrics on the validation images."""

    files: tuple[str, ...]
    metrics: dict[str, float]
    rank: tuple[float, float]  # by TRAIN.BEST_BY, then by the loss


def average(
    config: CfgNode, where: Iterable[str], output: Path, *, greedy: bool, on_score: Callable[[Scored], None]
) -> Scored:
    """Write the best of some weights and their averages, as a state dict, to `output`; which it is.

    `where`: weights files, and runs, whose checkpoints count. `greedy` begins with the best file and adds the others in
    the order of their ranks, each where the average is no worse for it; else there is one average, of all. BatchNorm's
    statistics of an average are estimated on training images. Raises UserError for weights of different models or
    classes.
    """
    files = [file for word in where for file in _files(word)]
    if output.resolve() in [Path(file).resolve() for file in files]:
        raise UserError(f"-output {output} is one of the weights to average: name another file")
    judge = _Judge(config, files, on_score)
    best, *others = judge.ranked(files)
    model = judge.model
    load_weights(model, best.files[0])
    total, kept = _arrays(model, "float64"), _arrays(model)
    for added in [[part] for part in others] if greedy else [others]:
        names, tried = best.files, total
        for part in added:
            load_weights(model, part.files[0])
            names, tried = names + part.files, {name: tried[name] + array for name, array in _arrays(model).items()}
        _fill(model, {name: array / len(names) for name, array in tried.items()})
        judge.estimate()
        found = judge.score(names)
        if found.rank >= best.rank:
            best, total, kept = found, tried, _arrays(model)
    _fill(model, kept)
    checkpoint.write_weights(output, model.state_dict())
    return best


class _Judge:
    """A model to fill, and its metrics on the validation images."""

    def __init__(self, config: CfgNode, files: Iterable[str], on_score: Callable[[Scored], None]) -> None:
        config, classes = with_classes(config, "val", _common_classes(files))
        self.model = build_model(config)
        freeze(self.model, config.TRAIN.FREEZE or ())  # the statistics of these layers stay
        self._loader = build_eval_loader(config, classes=classes)
        self._training = build_train_loader(config, classes=classes) if changing_norms(self.model) else None
        self._config, self._on_score = config, on_score

    def score(self, files: tuple[str, ...]) -> Scored:
        """What the model, which has the weights of `files`, is worth."""
        batches = progress(self._loader, len(self._loader), "validation")
        metrics = evaluate(self.model, batches, autocast=autocast(self._config))
        found = Scored(files, metrics, rank(metrics, self._config.TRAIN.BEST_BY))
        self._on_score(found)
        return found

    def ranked(self, files: Iterable[str]) -> list[Scored]:
        """Two files or more whose weights differ, the best first."""
        parts: dict[str, Scored] = {}
        for file in files:
            load_weights(self.model, file)
            known = checkpoint.fingerprint(self.model.state_dict())
            if known in parts:  # a run's best is one of its checkpoints
                self._on_score(parts[known]._replace(files=(file,)))
            else:
                parts[known] = self.score((file,))
        if len(parts) < 2:
            raise UserError(f"an average needs weights that differ, but those of {', '.join(files)} are the same")
        return sorted(parts.values(), key=lambda part: part.rank, reverse=True)

    def estimate(self) -> None:
        """Estimate the running statistics of the model again."""
        if self._training:
            estimate(self.model, itertools.islice(self._training.epoch(0), _BATCHES))


def _files(where: str) -> list[str]:
    """The weights of a run's best epoch and of its checkpoints; of anything else, itself."""
    folder = Path(where)
    of_epochs = sorted(folder.glob("epoch_*.pdparams"))
    return [str(path) for path in (best_path(folder), *of_epochs) if path.is_file()] if of_epochs else [where]


def _common_classes(files: Iterable[str]) -> Classes | None:
    known = [classes for classes in map(classes_beside, files) if classes]
    for other in known[1:]:
        refuse_difference(other._replace(advice="\nonly weights of the same classes can be averaged"), known[0])
    return known[0] if known else None


def _arrays(model: nn.Layer, dtype: str | None = None) -> dict[str, np.ndarray]:
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    return {name: array.astype(dtype or array.dtype) for name, array in arrays.items()}


def _fill(model: nn.Layer, arrays: dict[str, np.ndarray]) -> None:
    for name, value in model.state_dict().items():
        value.set_value(arrays[name].astype(value.numpy().dtype))
