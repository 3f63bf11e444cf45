"""The run's folder: opened, saved into, and resumed from."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from paddlevit.config import with_values
from paddlevit.data.class_names import CLASS_NAMES_FILE, class_names_text
from paddlevit.errors import UserError, path_mistakes
from paddlevit.runtime import process
from paddlevit.training import checkpoint
from paddlevit.training.engine import Trainer
from paddlevit.weights import load_weights, read_state_dict

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_folder(config: CfgNode) -> Iterator[Path]:
    """The run's folder, made if need be, with the log going there; refused where another run's checkpoints are.

    The body makes the parts of the run; where it raises a UserError, a folder that was made here is removed again.
    """
    folder = Path(config.OUTPUT)
    if not config.EVAL:
        with path_mistakes():
            _refuse_another_run(folder, config.MODEL.RESUME)
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # no error where that is forbidden
    process.barrier()  # every process has looked
    try:
        with path_mistakes():
            _make(folder)
            yield folder
    except UserError:
        if new:
            shutil.rmtree(new[0], ignore_errors=True)
        for parent in new[1:]:
            with contextlib.suppress(OSError):  # others use it by now
                parent.rmdir()
        raise


def _refuse_another_run(folder: Path, resume: str) -> None:
    """A run begins in a folder without checkpoints, one that is resumed from elsewhere too until it saves its own."""
    named = Path(resume)
    if resume == "auto" or (resume and (named if named.is_dir() else named.parent).resolve() == folder.resolve()):
        return
    taken = next(folder.glob("epoch_*.pdstate" if resume else "epoch_*.pd*"), None)
    if taken:
        another = f", which is not the one that -resume {resume} names" if resume else ""
        raise UserError(
            f"-output {folder} already holds a run ({taken.name}){another}: resume it with -resume auto, or name "
            "another folder"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        process.setup_logging(folder)
    except OSError as error:
        raise UserError(f"-output {folder} cannot be written: {error.strerror}") from None
    process.barrier()  # the log of rank 0 is open
    if not process.agree(str((folder / "log.txt").is_file())):
        raise UserError(f"-output {folder}: the processes see different folders; machines must share the run's")


def write_description(folder: Path, config: CfgNode, class_names: Sequence[str]) -> None:
    """Write what the run is, config.yaml, and what its classes are called."""
    if process.is_main():
        saved = with_values(config, {"MODEL.RESUME": ""})
        checkpoint.write_text(folder / "config.yaml", saved.dump())
        checkpoint.write_text(folder / CLASS_NAMES_FILE, class_names_text(class_names))


def best_path(folder: Path) -> Path:
    """Where the best weights of the run in `folder` are."""
    return folder / "best.pdparams"


def save(folder: Path, trainer: Trainer, keep: int) -> None:
    """Write a checkpoint; all processes return together."""
    if process.is_main() or trainer.shards:
        state = trainer.state()
    if process.is_main():
        logger.info("saved %s", checkpoint.save(folder, state, keep=keep).with_suffix(""))
    process.barrier()


def save_after_error(folder: Path, trainer: Trainer, keep: int) -> None:
    """Write a checkpoint without the other processes: they wait for this one in the middle of a step, or fail too."""
    if trainer.shards or not trainer.roll_back():
        logger.warning("not saved after an error: this process does not have the whole state")
        return
    try:
        path = checkpoint.save_once(folder, trainer.state(), keep=keep)
    except Exception as error:  # the one before it is the one to tell
        logger.warning("not saved after an error: %s", error)
    else:
        if path is not None:
            logger.info("saved %s after an error; -resume auto continues", path.with_suffix(""))


def resumed_state(config: CfgNode, folder: Path) -> dict[str, Any] | None:
    """The state to resume from, and its "path"; None for a fresh start."""
    resume = config.MODEL.RESUME
    if not resume:
        return None
    path = checkpoint.newest(folder) if resume == "auto" else checkpoint.find(Path(resume))
    if not process.agree(str(path)):
        raise UserError(f"-resume {resume}: the processes see different checkpoints (here {path})")
    if path is None:
        logger.info("-resume auto: no checkpoint in %s, training from scratch", folder)
        return None
    logger.info("resuming from %s", path)
    return {**checkpoint.load(path, read_state_dict), "path": path}


def restore(trainer: Trainer, resumed: dict[str, Any], folder: Path) -> None:
    """Put a resumed state into the trainer and make `folder` look as it did then."""
    path = resumed["path"]
    try:
        load_weights(trainer.model, resumed["model"])
        if trainer.ema is not None:
            load_weights(trainer.ema.model, resumed["ema"] or resumed["model"])
    except UserError as error:
        raise UserError(f"{path.with_suffix('.pdparams')} does not fit the configuration's model: {error}") from None
    trainer.load_state(resumed["optimizer"], resumed["progress"])
    gone = process.is_main() and not _restore_best(trainer.best, best_path(path.parent), best_path(folder))
    if process.all_reduce_max(int(gone)):  # all processes forget it, or they part ways at the next comparison
        trainer.best = {}
    if process.is_main() and path.parent.resolve() == folder.resolve():
        for stem in checkpoint.drop_newer(path):
            logger.warning("deleted %s, which is newer than %s", stem, path.stem)
    process.barrier()


def _restore_best(best: dict[str, Any], theirs: Path, ours: Path) -> bool:
    """Whether the best weights that the resumed state knows are still there; they are copied from its folder."""
    known = best.get("sha256")
    if not known or checkpoint.sha256(ours) == known:
        return True
    if checkpoint.sha256(theirs) == known:
        checkpoint.copy_file(theirs, ours)
        return True
    logger.info("the best weights so far, top-1 %.2f %%, are gone: the next ones count", best["acc1"])
    return False
