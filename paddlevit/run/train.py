"""A whole run, training or evaluation, as the configuration says."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.data import build_eval_loader, build_train_loader
from paddlevit.errors import UserError
from paddlevit.metrics import rank
from paddlevit.models import autocast, build_model
from paddlevit.report.history import read_run
from paddlevit.report.page import write_report
from paddlevit.run.build import (
    build_trainer,
    check_teacher,
    known_classes,
    log_start,
    with_classes,
)
from paddlevit.run.certificate import certify
from paddlevit.run.evaluation import Outputs, write_per_class
from paddlevit.run.folder import best_path, describe, open_folder, restore, resumed_state, save, save_after_error
from paddlevit.runtime import process
from paddlevit.runtime.files import fingerprint, sha256
from paddlevit.runtime.seeding import seed_step
from paddlevit.runtime.signals import stop_signals
from paddlevit.training import checkpoint
from paddlevit.training.engine import Stopped, Trainer, evaluate
from paddlevit.training.journal import Journal, open_scalars, progress
from paddlevit.training.objectives import Distilled
from paddlevit.weights import load_weights

logger = logging.getLogger(__name__)

_IMAGES_TO_TRY = 100  # of the validation images, at the start
_BATCHES_FOR_THE_TEACHER = 4
_BATCHES_BETWEEN_CHECKS = 16
_TRAINING_PICTURES = 12  # in the report
_MOST_LOGITS = 2**26  # of all validation images: 256 MiB, 67,000 images of 1,000 classes


def train(config: CfgNode) -> int:
    """Train as `config` says, or resume; 0, or 128 + the signal that stopped it after saving."""
    with open_folder(config) as folder:
        run = _Run(config, folder)
        trainer, updates = run.trainer, run.trainer.updates
        with _stop_signals(trainer):
            try:
                run.fit()
            except Stopped as stopped:
                save(folder, trainer, config.KEEP_LAST)
                logger.info("stopped by %s after saving; -resume auto continues", signal.Signals(stopped.signum).name)
                return 128 + stopped.signum
            except Exception:
                if trainer.updates > updates:
                    save_after_error(folder, trainer, config.KEEP_LAST)
                raise
        run.finish()
    return 0


class _Run:
    """A training run: its parts, and the folder that it fills."""

    def __init__(self, config: CfgNode, folder: Path) -> None:
        if config.AMP:
            process.check_amp(config.AMP_DTYPE)
        resumed = resumed_state(config, folder)
        classes = known_classes(config, None if resumed is None else resumed["path"])
        config, classes = with_classes(config, "train", classes)
        options: Any = {"rank": process.rank(), "world_size": process.world_size(), "classes": classes}
        train_loader, eval_loader = build_train_loader(config, **options), build_eval_loader(config, **options)
        check_teacher(config, train_loader.class_names)
        every = -(-len(eval_loader.indices) // _IMAGES_TO_TRY)
        for i in eval_loader.indices[:: max(every, 1)]:  # or an epoch is trained before one that cannot be read is met
            eval_loader.source.image(int(i))
        labels = train_loader.source.labels
        trainer = build_trainer(config, train_loader.steps_per_epoch, pretrained=resumed is None, labels=labels)
        if resumed is not None:
            restore(trainer, resumed, folder)
        log_start(config, trainer, train_loader, eval_loader)
        self.config, self.folder, self.trainer = config, folder, trainer
        self.train_loader, self.eval_loader, self.journal = train_loader, eval_loader, self._journal()
        if isinstance(trainer.objective, Distilled):
            self._try_teacher(trainer.objective.teacher)
        describe(folder, config, train_loader.class_names, resumed)
        self.journal.rewind(trainer.epoch, trainer.step, evaluated=trainer.epoch - trainer.to_evaluate)
        if config.TRAIN.PROBE != "none" and resumed is None:
            self.evaluate_epoch()

    def _journal(self) -> Journal:
        config, folder, trainer = self.config, self.folder, self.trainer
        return Journal(
            folder / "metrics.jsonl",
            report_freq=config.REPORT_FREQ,
            num_epochs=config.TRAIN.NUM_EPOCHS,
            steps_per_epoch=trainer.steps_per_epoch,
            images_per_batch=config.DATA.BATCH_SIZE * process.world_size(),
            num_classes=config.MODEL.NUM_CLASSES,
            fingerprint=lambda: fingerprint(trainer.model.state_dict()),
            write_curves=open_scalars(config.LOG_TO, folder) if config.LOG_TO != "none" and process.is_main() else None,
        )

    def fit(self) -> None:
        """Train until the last epoch, evaluating and saving on the way."""
        config, trainer = self.config, self.trainer
        if config.TRAIN.PROBE == "only":
            return
        if trainer.epoch >= config.TRAIN.NUM_EPOCHS:
            logger.info("nothing left to train: %d of %d epochs are done", trainer.epoch, config.TRAIN.NUM_EPOCHS)
        while trainer.to_evaluate or not self._ends():
            if not trainer.to_evaluate:  # else it was stopped while it evaluated
                self._train_epoch()
            trainer.to_evaluate |= self._ends() or trainer.epoch % config.VALIDATE_FREQ == 0
            if trainer.to_evaluate:
                self.evaluate_epoch()
                trainer.to_evaluate = False
            last = self._ends()
            if last or trainer.epoch % config.SAVE_FREQ == 0:
                save(self.folder, trainer, config.KEEP_LAST)
            if not last:
                trainer.check_stop()
        if trainer.epoch < config.TRAIN.NUM_EPOCHS:
            train = config.TRAIN
            waited = f"{train.BEST_BY} has not improved for {train.PATIENCE} epochs (TRAIN.PATIENCE)"
            logger.warning(f"training ends after epoch {trainer.epoch} of {train.NUM_EPOCHS}: {waited}")
            rates = f"the learning rate is still {trainer.lr_at(trainer.epoch):.3g}, TRAIN.END_LR {train.END_LR:.3g}"
            logger.warning(f"{rates}: with fewer TRAIN.NUM_EPOCHS it comes down to that")

    def _ends(self) -> bool:
        """Whether all epochs are done, or TRAIN.PATIENCE is over."""
        train, trainer = self.config.TRAIN, self.trainer
        waited = trainer.epoch - trainer.best.get("improved", trainer.epoch)
        return trainer.epoch >= train.NUM_EPOCHS or bool(train.PATIENCE and waited >= train.PATIENCE)

    def _train_epoch(self) -> None:
        trainer, number = self.trainer, self.trainer.epoch + 1
        self.journal.start_epoch(number, trainer.step)
        batches = self.train_loader.epoch(trainer.epoch, trainer.step)
        what = f"epoch {number}/{self.config.TRAIN.NUM_EPOCHS}"
        trainer.train_epoch(progress(batches, trainer.steps_per_epoch, what, done=trainer.step), self._after_step)

    def _after_step(self, loss: Tensor, waited: float) -> None:
        """Note a batch; with a line of the log, name the images of losses that were not finite."""
        epoch = self.trainer.epoch
        not_finite = self.journal.step(loss, waited, self.trainer.lr)
        if not_finite is None:
            return
        for step in not_finite:
            names = ", ".join(self.train_loader.names(epoch, step))
            logger.warning("epoch %d step %d: the loss is not finite; images: %s", epoch + 1, step + 1, names)
        skipped = self.trainer.read_skipped()
        if skipped:
            logger.warning("skipped %d optimizer steps: a gradient was not finite", skipped)

    def evaluate_epoch(self) -> None:
        """Evaluate the model and its EMA; where one is better than any before, save it as best.pdparams."""
        trainer = self.trainer
        models = {"model": trainer.model} if trainer.ema is None else {"model": trainer.model, "ema": trainer.ema.model}
        for weights, model in models.items():
            result = self._evaluate(model, "validation", self._stop_between_batches())
            self.journal.evaluation(trainer.epoch, weights, result)
            self._keep_if_best(weights, model, result)

    def _keep_if_best(self, weights: str, model: nn.Layer, result: dict[str, float]) -> None:
        """Save the model as best.pdparams where TRAIN.BEST_BY is better than before, or as good at a smaller loss."""
        trainer, train, path = self.trainer, self.config.TRAIN, best_path(self.folder)
        value, minus_loss = rank(result, train.BEST_BY)
        before = trainer.best if trainer.best.get("by") == train.BEST_BY else {}
        if trainer.best and not before:
            by = f"TRAIN.BEST_BY was {trainer.best.get('by')}, now {train.BEST_BY}"
            logger.warning(f"{by}: the next evaluation decides anew")
        if "value" not in before or (value, minus_loss) > (before["value"], -before["loss"]):
            if process.is_main():
                checkpoint.write_weights(path, model.state_dict())
            found = {"by": train.BEST_BY, "value": value, "loss": -minus_loss, "acc1": result["acc1"]}
            found |= {"epoch": trainer.epoch, "weights": weights}
            found["sha256"] = sha256(path) if process.is_main() else ""
            trainer.best = {**before, **found}
        if "to_beat" not in before or value > before["to_beat"] + train.MIN_DELTA:
            trainer.best |= {"to_beat": value, "improved": trainer.epoch}

    def _evaluate(self, model: nn.Layer, what: str, on_batch: Callable[[Tensor], None]) -> dict[str, float]:
        batches = progress(self.eval_loader, len(self.eval_loader), what)
        return evaluate(model, batches, autocast=autocast(self.config), on_batch=on_batch)

    def _stop_between_batches(self) -> Callable[[Tensor], None]:
        """What raises Stopped in the middle of an evaluation: a launcher may not wait for the end of it."""
        done = itertools.count(1)
        every = 1 if process.world_size() == 1 else _BATCHES_BETWEEN_CHECKS

        def check(logits: Tensor) -> None:
            number = next(done)
            if number % every == 0 and number <= self.eval_loader.common_batches:
                self.trainer.check_stop()

        return check

    def _try_teacher(self, teacher: nn.Layer) -> None:
        """Say how good the teacher is on some images: with wrong weights or another order of classes it is not."""
        result = evaluate(teacher, itertools.islice(self.eval_loader, _BATCHES_FOR_THE_TEACHER))
        logger.info("teacher: top-1 %.1f %% on the first %d validation images", result["acc1"], result["num_images"])

    def finish(self) -> None:
        """Evaluate the saved best weights once more, as a user would, and write the report."""
        if "value" not in self.trainer.best:
            self.evaluate_epoch()
        process.barrier()
        best, path = self.trainer.best, best_path(self.folder)
        model = build_model(self.config)
        load_weights(model, path)
        few = self.eval_loader.num_images * self.config.MODEL.NUM_CLASSES <= _MOST_LOGITS
        outputs = Outputs(self.eval_loader, keep_logits=few)
        result = self._evaluate(model, "evaluating the best", outputs)
        self.journal.evaluation(best["epoch"], best["weights"], result, best=True)
        predictions = outputs.predictions(self.config.DATA.DATA_PATH)
        predictions = outputs.calibrated(predictions, self.folder, best["sha256"])
        if process.is_main():
            write_per_class(self.folder, predictions)
            certify(self.folder, self.config, self.train_loader.source)
            report = write_report(self.folder, predictions, self._training_pictures())
            logger.info("best weights: %s (%s, epoch %d)", path, best["weights"], best["epoch"])
            self._log_probe()
            logger.info("report: %s", report)

    def _training_pictures(self) -> list[bytes]:
        """Images of the first batch as the model saw them: augmented, erased and mixed."""
        try:
            images, labels = next(self.train_loader.epoch(0))
        except UserError as error:  # no reason to lose the report of a long run
            logger.warning("report: no training images: %s", error)
            return []
        images, _ = self.trainer.mixup(images, labels, seed_step(self.config.SEED, 0, 0))
        return self.train_loader.pictures(images[:_TRAINING_PICTURES])

    def _log_probe(self) -> None:
        """Say what fine-tuning has added to the probe that it started with."""
        evaluations = read_run(self.folder).series["model"]
        if self.config.TRAIN.PROBE == "first" and evaluations and evaluations[0].epoch == 0:
            probe = evaluations[0].number("acc1")
            logger.info("top-1 of the linear probe %.2f %%, fine-tuned %.2f %%", probe, self.trainer.best["acc1"])


@contextlib.contextmanager
def _stop_signals(trainer: Trainer) -> Iterator[None]:
    """While training, a signal asks the trainer to stop after its step; another one ends the process at once."""

    def ask(signum: int) -> None:
        trainer.stop_signal = signum

    def end(signum: int) -> None:
        logger.warning("ended at once by %s", signal.Signals(signum).name)
        signal.signal(signum, previous[signum])
        signal.raise_signal(signum)

    with stop_signals(ask, end) as previous:
        yield
