"""The figures of a run for TensorBoard or VisualDL (LOG_TO), beside metrics.jsonl, from which they are made."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any, Callable

from paddlevit.errors import UserError

logger = logging.getLogger(__name__)

WriteScalars = Callable[[dict[str, float], int], None]

_SECONDS_BETWEEN_FLUSHES = 10


def open_scalars(kind: str, folder: Path) -> WriteScalars:
    """write(figures by tag, step), into a new file in `folder`/tensorboard or `folder`/visualdl, by `kind`.

    What earlier files hold counts no more, so that no point of a resumed run stands there twice: the journal writes its
    lines anew. Raises UserError where the package is missing or the folder cannot be written.
    """
    package, opened = _KINDS[kind]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"LOG_TO is {kind}, but: {error} (pip install {package})") from None
    try:
        write = opened(module, folder / kind)
    except OSError as error:
        raise UserError(f"cannot write {folder / kind}: {error.strerror}") from None
    logger.info("curves: %s --logdir %s", kind, folder)
    return write


def _open_tensorboard(module: Any, folder: Path) -> WriteScalars:
    # Step 0 withdraws all earlier points; a TensorBoard that is running would not notice that files are gone. A queue
    # without an end: where the disk is full nobody empties it, and training would wait for that.
    writer = module.SummaryWriter(str(folder), purge_step=0, max_queue=0, flush_secs=_SECONDS_BETWEEN_FLUSHES)

    def write(figures: dict[str, float], step: int) -> None:
        for tag, value in figures.items():
            writer.add_scalar(tag, value, step)

    return write


def _open_visualdl(module: Any, folder: Path) -> WriteScalars:
    for file in folder.glob("vdlrecords.*"):  # it has no other way to withdraw points
        file.unlink()
    writer = module.LogWriter(str(folder))

    def write(figures: dict[str, float], step: int) -> None:
        for tag, value in figures.items():
            writer.add_scalar(tag, value, step)
        writer.flush()  # at the end of the program nobody else does

    return write


_KINDS = {"tensorboard": ("tensorboardX", _open_tensorboard), "visualdl": ("visualdl", _open_visualdl)}
