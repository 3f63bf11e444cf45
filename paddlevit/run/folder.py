"""The run's folder: opened, saved into, and resumed from."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from paddlevit.config import changes, dumped, with_values
from paddlevit.data.index import CLASS_NAMES_FILE, class_names_text
from paddlevit.data.sources import say_once
from paddlevit.errors import UserError, path_mistakes
from paddlevit.runtime import process
from paddlevit.runtime.files import copy_file, sha256, write_text
from paddlevit.training import checkpoint
from paddlevit.training.engine import Trainer
from paddlevit.weights import load_weights, read_state_dict

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_folder(config: CfgNode) -> Iterator[Path]:
    """The run's folder, made if need be, with the log going there, and to train in it locked until the end.

    Refused where another run trains, or has left its checkpoints. A run has begun when config.yaml is written: where a
    UserError comes before, a folder that was new or empty is removed again.
    """
    folder, fresh = Path(config.OUTPUT), False
    with contextlib.ExitStack() as stack:
        try:
            with _writable(folder):
                if process.is_main():
                    folder.mkdir(parents=True, exist_ok=True)
                    if not config.EVAL:
                        stack.enter_context(_locked(folder))
                        _refuse_another_run(folder, config.MODEL.RESUME)
                    fresh = set(os.listdir(folder)) <= {".lock"}
                _log_to(folder)
            say_once.cache_clear()  # another run's log has what was said before
            with path_mistakes():
                yield folder
        except BaseException as error:
            mistake = isinstance(error, UserError)
            why = f"{type(error).__name__}: {error}"
            logger.error("ended by %s", why, exc_info=not mistake, extra={"file_only": True})
            if mistake and fresh and not (folder / "config.yaml").exists():
                _leave(folder)
            raise


def _leave(folder: Path) -> None:
    """Remove the folder with what a run that could not begin has written; what else is there by now stays."""
    with contextlib.suppress(OSError):
        for own in (*folder.glob("log*.txt"), folder / ".lock", folder / "metrics.jsonl"):
            own.unlink(missing_ok=True)
        folder.rmdir()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"-output {folder} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder. The lock is this process's own, ends with it, and forked ones do not have it.

    To close the file anywhere in this process would give it up.
    """
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, ImportError) as error:  # Windows has no fcntl
            if getattr(error, "errno", None) in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"-output {folder} is in use by another run ({file.read()}): name another one"
                ) from None
            logger.warning("%s cannot be locked (%s): start no other run there", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


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
    if not resume and best_path(folder).exists():  # all that a linear probe leaves
        raise UserError(f"-output {folder} already holds weights ({best_path(folder).name}): name another folder")


def _log_to(folder: Path) -> None:
    """The log of every process goes to the folder; rank 0 begins, and the others find its log there."""
    for mine in (process.is_main(), not process.is_main()):
        if mine:
            process.setup_logging(folder)
        process.barrier()
        if not process.agree(str((folder / "log.txt").is_file())):
            raise UserError(f"-output {folder}: the processes see different folders; machines must share the run's")


def describe(folder: Path, config: CfgNode, class_names: Sequence[str], resumed: dict[str, Any] | None) -> None:
    """Write what the run is, config.yaml, and what its classes are called.

    What differs from the run that is resumed is logged, key by key; an earlier config.yaml stays as config.<n>.yaml.
    """
    if not process.is_main():
        return
    path, text = folder / "config.yaml", dumped(with_values(config, {"MODEL.RESUME": ""}))
    if resumed is not None:
        for line in changes(resumed["path"].parent / path.name, config):
            logger.warning("changed on resume: %s", line)
    if path.exists() and path.read_bytes() != text.encode():
        number = next(n for n in itertools.count(1) if not (folder / f"config.{n}.yaml").exists())
        copy_file(path, folder / f"config.{number}.yaml")
    write_text(folder / CLASS_NAMES_FILE, class_names_text(class_names))
    write_text(path, text)


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


def load_state(trainer: Trainer, state: dict[str, Any], path: Path) -> None:
    """Put the state of the checkpoint `path` into the trainer."""
    weights = path.with_suffix(".pdparams")
    try:
        report = load_weights(trainer.model, state["model"])
        if trainer.ema is not None:
            load_weights(trainer.ema.model, state["ema"] or state["model"])
    except UserError as error:
        raise UserError(f"{weights} does not fit the configuration's model: {error}") from None
    if report.resized:
        what = f"{weights} is of a model for another DATA.IMAGE_SIZE ({', '.join(report.resized)})"
        raise UserError(f"{what}: resume with the same size, or start another run with -pretrained {weights}")
    trainer.load_state(state["optimizer"], state["progress"])


def restore(trainer: Trainer, resumed: dict[str, Any], folder: Path) -> None:
    """Put a resumed state into the trainer and make `folder` look as it did then."""
    path = resumed["path"]
    load_state(trainer, resumed, path)
    gone = process.is_main() and not _restore_best(trainer.best, best_path(path.parent), best_path(folder))
    if process.all_reduce_max(int(gone)):  # all processes forget it, or they part ways at the next comparison
        kept = ("by", "to_beat", "improved")  # or a run that was killed would be patient for longer
        trainer.best = {key: trainer.best[key] for key in kept if key in trainer.best}
    if process.is_main() and path.parent.resolve() == folder.resolve():
        for stem in checkpoint.drop_newer(path):
            logger.warning("deleted %s, which is newer than %s", stem, path.stem)
    process.barrier()


def _restore_best(best: dict[str, Any], theirs: Path, ours: Path) -> bool:
    """Whether the best weights that the resumed state knows are still there; they are copied from its folder."""
    known = best.get("sha256")
    if not known or sha256(ours) == known:
        return True
    if sha256(theirs) == known:
        copy_file(theirs, ours)
        return True
    logger.info("the best weights so far, top-1 %.2f %%, are missing: the next evaluation decides anew", best["acc1"])
    return False
