"""Training and evaluation as the configuration says."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.config import with_values
from paddlevit.data import EvalLoader, TrainLoader, build_eval_loader, build_train_loader
from paddlevit.data.class_names import CLASS_NAMES_FILE, class_names_text
from paddlevit.errors import UserError
from paddlevit.models import build_model
from paddlevit.run.build import autocast, build_trainer, check_amp, load_pretrained, with_classes
from paddlevit.run.finish import finish
from paddlevit.run.folder import best_path, open_folder, restore, resumed_state, save
from paddlevit.run.messages import log_start
from paddlevit.runtime import process
from paddlevit.runtime.launcher import SECONDS_TO_REPEAT
from paddlevit.training import checkpoint
from paddlevit.training.engine import Stopped, Trainer, evaluate
from paddlevit.training.journal import Journal, progress, with_nulls
from paddlevit.training.objectives import Distilled
from paddlevit.training.scalars import open_scalars

logger = logging.getLogger(__name__)

_BATCHES_FOR_THE_TEACHER = 4
_BATCHES_BETWEEN_CHECKS = 16


def train(config: CfgNode) -> int:
    """Train as `config` says, or go on with an earlier run; 0, or 128 + the signal that stopped it after saving."""
    with open_folder(config) as folder:
        check_amp(config)
        resumed = resumed_state(config, folder)
        config = with_classes(config, "train")
        ranks = {"rank": process.rank(), "world_size": process.world_size()}
        train_loader, eval_loader = build_train_loader(config, **ranks), build_eval_loader(config, **ranks)
        trainer = build_trainer(config, train_loader.steps_per_epoch, pretrained=resumed is None)
        if resumed is not None:
            restore(trainer, resumed, folder)
        if process.is_main():
            saved = with_values(config, {"MODEL.RESUME": ""})
            checkpoint.write_text(folder / "config.yaml", saved.dump())
            checkpoint.write_text(folder / CLASS_NAMES_FILE, class_names_text(train_loader.class_names))
        journal = _journal(config, folder, train_loader)
        journal.rewind(trainer.epoch, trainer.step, evaluated=trainer.epoch - trainer.to_evaluate)
        if config.LOG_TO != "none" and process.is_main():
            journal.mirror(open_scalars(config.LOG_TO, folder))
        log_start(config, trainer, train_loader, eval_loader)
        if isinstance(trainer.objective, Distilled):
            _try_teacher(trainer.objective.teacher, eval_loader)
    with _stop_signals(trainer):
        try:
            _epochs(config, trainer, train_loader, eval_loader, journal)
        except Stopped as stopped:
            save(folder, trainer, config.KEEP_LAST)
            logger.info("stopped by %s after saving; -resume auto goes on", signal.Signals(stopped.signum).name)
            return 128 + stopped.signum
    if not trainer.best:  # nothing was left to train
        _evaluate_epoch(config, trainer, eval_loader, journal)
    finish(config, trainer.best, eval_loader, journal)
    return 0


def validate(config: CfgNode) -> int:
    """Evaluate the weights that `config` names on the validation images and write eval.json; 0."""
    if not config.MODEL.PRETRAINED or config.MODEL.RESUME:
        raise UserError("-eval needs the weights to evaluate by -pretrained FILE, and does not take -resume")
    config = with_values(config, {"MODEL.REINIT_HEAD": False})  # the run's own file has it; its head is trained by now
    with open_folder(config) as folder:
        check_amp(config)
        config = with_classes(config, "val")
        loader = build_eval_loader(config, rank=process.rank(), world_size=process.world_size())
        model = build_model(config)
        load_pretrained(config, model)
    result = evaluate(model, progress(loader, len(loader), "evaluation"), autocast=autocast(config))
    logger.info(
        "top-1 %.3f %%, top-5 %.3f %%, loss %.4f on %d images",
        *(result[k] for k in ("acc1", "acc5", "loss", "num_images")),
    )
    if process.is_main():
        record = {**result, "weights": config.MODEL.PRETRAINED}
        checkpoint.write_text(folder / "eval.json", json.dumps(with_nulls(record), indent=1) + "\n")
        if not (folder / "config.yaml").exists():  # a training run's stays
            checkpoint.write_text(folder / "config.yaml", config.dump())
        logger.info("written to %s", folder / "eval.json")
    return 0


def _journal(config: CfgNode, folder: Path, loader: TrainLoader) -> Journal:
    return Journal(
        folder / "metrics.jsonl",
        report_freq=config.REPORT_FREQ,
        num_epochs=config.TRAIN.NUM_EPOCHS,
        steps_per_epoch=loader.steps_per_epoch,
        images_per_step=loader.batch_size * process.world_size(),
    )


def _try_teacher(teacher: nn.Layer, loader: EvalLoader) -> None:
    """Say how good the teacher is on some images: with wrong weights or another order of classes it is not."""
    result = evaluate(teacher, itertools.islice(loader, _BATCHES_FOR_THE_TEACHER))
    logger.info("teacher: top-1 %.1f %% on the first %d validation images", result["acc1"], result["num_images"])


def _epochs(
    config: CfgNode, trainer: Trainer, train_loader: TrainLoader, eval_loader: EvalLoader, journal: Journal
) -> None:
    """Train until the last epoch, evaluating and saving on the way."""
    folder = journal.path.parent
    while trainer.epoch < config.TRAIN.NUM_EPOCHS or trainer.to_evaluate:
        if not trainer.to_evaluate:  # else it was stopped while it evaluated
            _train_epoch(trainer, train_loader, journal)
            trainer.to_evaluate = trainer.epoch == config.TRAIN.NUM_EPOCHS or trainer.epoch % config.VALIDATE_FREQ == 0
        if trainer.to_evaluate:
            _evaluate_epoch(config, trainer, eval_loader, journal)
            trainer.to_evaluate = False
        last = trainer.epoch == config.TRAIN.NUM_EPOCHS
        if last or trainer.epoch % config.SAVE_FREQ == 0:
            save(folder, trainer, config.KEEP_LAST)
        if not last:
            trainer.check_stop()


def _train_epoch(trainer: Trainer, loader: TrainLoader, journal: Journal) -> None:
    journal.start_epoch(trainer.epoch + 1, trainer.step)
    try:
        trainer.train_epoch(
            loader.epoch(trainer.epoch, trainer.step), functools.partial(_after_step, trainer, loader, journal)
        )
    finally:
        journal.end_epoch()


def _after_step(trainer: Trainer, loader: TrainLoader, journal: Journal, loss: Tensor, waited: float) -> None:
    """Note a batch; with a line of the log, look for losses that were not finite."""
    not_finite = journal.step(loss, waited, trainer.lr)
    if not_finite is None:
        return
    for step in not_finite:
        names = ", ".join(loader.names(trainer.epoch, step))
        logger.warning("epoch %d step %d: the loss is not finite; images: %s", trainer.epoch + 1, step + 1, names)
    skipped = trainer.read_skipped()
    if skipped:
        logger.warning("%d optimizer steps were left out: a gradient was not finite", skipped)


def _evaluate_epoch(config: CfgNode, trainer: Trainer, loader: EvalLoader, journal: Journal) -> None:
    """Evaluate the model and its EMA; where one is better than any before, save it as best.pdparams."""
    path = best_path(journal.path.parent)
    models = {"model": trainer.model}
    if trainer.ema is not None:
        models["ema"] = trainer.ema.model
    for weights, model in models.items():
        result = evaluate(
            model,
            progress(loader, len(loader), "validation"),
            autocast=autocast(config),
            on_batch=_stop_between_batches(trainer, loader),
        )
        journal.evaluation(trainer.epoch, weights, result)
        if result["acc1"] > trainer.best.get("acc1", -1.0):
            if process.is_main():
                checkpoint.write_weights(path, model.state_dict())
            trainer.best = {"acc1": result["acc1"], "epoch": trainer.epoch, "weights": weights}
            trainer.best["sha256"] = checkpoint.sha256(path) if process.is_main() else ""


def _stop_between_batches(trainer: Trainer, loader: EvalLoader) -> Callable[[Tensor], None]:
    """What raises Stopped in the middle of an evaluation: a launcher may not wait for the end of it."""
    done = itertools.count(1)
    every = 1 if process.world_size() == 1 else _BATCHES_BETWEEN_CHECKS

    def check(logits: Tensor) -> None:
        number = next(done)
        if number % every == 0 and number <= loader.common_batches:
            trainer.check_stop()

    return check


@contextlib.contextmanager
def _stop_signals(trainer: Trainer) -> Iterator[None]:
    """While training, SIGTERM and SIGINT ask the trainer to stop after its step; another one ends it at once.

    Those that come within two seconds count as one: launchers repeat them, and systemd and Slurm send them to all.
    """
    first = 0.0

    def ask(signum: int, frame: Any) -> None:
        nonlocal first
        if not trainer.stop_signal:
            trainer.stop_signal, first = signum, time.monotonic()
        elif time.monotonic() - first > SECONDS_TO_REPEAT:
            signal.signal(signum, previous[signum])
            signal.raise_signal(signum)

    previous: dict[int, Any] = {signum: signal.signal(signum, ask) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
