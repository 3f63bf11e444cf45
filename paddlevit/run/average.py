"""Averages of weights of one model (model soups, Wortsman et al. 2022), no worse than the best of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from paddle import nn
from yacs.config import CfgNode

from paddlevit.data import build_eval_loader, build_train_loader
from paddlevit.data.classes import Classes, changes_since_run, classes_beside, folder_of, refuse_difference
from paddlevit.errors import UserError
from paddlevit.metrics import rank
from paddlevit.models import autocast, build_model
from paddlevit.run.build import with_classes
from paddlevit.run.folder import best_path
from paddlevit.runtime.files import fingerprint
from paddlevit.training import checkpoint
from paddlevit.training.engine import evaluate
from paddlevit.training.journal import progress
from paddlevit.training.optim import freeze
from paddlevit.training.running_statistics import changing_norms, estimate
from paddlevit.weights import load_weights

logger = logging.getLogger(__name__)

_BATCHES = 100  # that BatchNorm's statistics are estimated on, at most


class Scored(NamedTuple):
    """A file, or the average of several, and its metrics on the validation images."""

    files: tuple[str, ...]
    metrics: dict[str, float]
    rank: tuple[float, float]  # by TRAIN.BEST_BY, then by the loss

    def __str__(self) -> str:
        names = {"acc1": "top-1", "balanced_acc": "balanced accuracy", "macro_f1": "macro F1"}
        metrics = [f"{name} {self.metrics[key]:.2f} %" for key, name in names.items()]
        *others, last = self.files
        what = f"average of {len(self.files)}, with {last}" if others else last
        return f"{', '.join(metrics)}, loss {self.metrics['loss']:.4f}: {what}"


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
    mixture = _Mixture(config, files)
    parts: dict[str, Scored] = {}
    for file in files:
        weights = fingerprint(mixture.filled([file]).state_dict())
        if weights not in parts:  # a run's best is one of its checkpoints
            parts[weights] = mixture.score(file)
            on_score(parts[weights])
    if len(parts) < 2:
        raise UserError(f"an average needs weights that differ, of two files or more, got {', '.join(files)}")
    best, *others = sorted(parts.values(), key=lambda part: part.rank, reverse=True)
    checkpoint.write_weights(output, mixture.filled(best.files).state_dict())
    for added in [[part] for part in others] if greedy else [others]:
        tried = mixture.score(*best.files, *(part.files[0] for part in added))
        on_score(tried)
        if tried.rank >= best.rank:
            best = tried
            checkpoint.write_weights(output, mixture.model.state_dict())
    return best


class _Mixture:
    """A model to fill with the average of files, and to score on the validation images."""

    def __init__(self, config: CfgNode, files: Iterable[str]) -> None:
        config, classes = with_classes(config, "val", _common_classes(files))
        self._config, self.model = config, build_model(config)
        for file in files:  # or one that does not fit is met when others have been scored
            load_weights(self.model, file)
        for folder in dict.fromkeys(map(folder_of, files)):
            for line in changes_since_run(folder, config):
                logger.warning("%s: %s", folder, line)
        freeze(self.model, config.TRAIN.FREEZE or ())  # the statistics of these layers stay
        self._loader = build_eval_loader(config, classes=classes)
        self._training = build_train_loader(config, classes=classes) if changing_norms(self.model) else None

    def filled(self, files: Sequence[str]) -> nn.Layer:
        """The model with the average of `files`."""
        total: dict[str, Any] = {}
        for file in files:
            load_weights(self.model, file)
            for name, value in self.model.state_dict().items():
                total[name] = total.get(name, 0) + value.numpy().astype("float64")
        for name, value in self.model.state_dict().items():
            value.set_value((total[name] / len(files)).astype(value.numpy().dtype))
        if self._training and len(files) > 1:
            estimate(self.model, itertools.islice(self._training.epoch(0), _BATCHES))
        return self.model

    def score(self, *files: str) -> Scored:
        model, batches = self.filled(files), progress(self._loader, len(self._loader), "validation")
        metrics = evaluate(model, batches, autocast=autocast(self._config))
        return Scored(files, metrics, rank(metrics, self._config.TRAIN.BEST_BY))


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
