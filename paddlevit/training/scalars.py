"""Curves for TensorBoard or VisualDL (LOG_TO), next to metrics.jsonl, from whose lines they are drawn."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any, Callable

from paddlevit.errors import UserError

logger = logging.getLogger(__name__)

_PACKAGES = {"tensorboard": "tensorboardX", "visualdl": "visualdl"}


def open_scalars(kind: str, folder: Path) -> Callable[[dict[str, float], int], None]:
    """write(values by tag, step), into a new file in `folder`/tensorboard or `folder`/visualdl, by `kind`.

    Points in earlier files no longer count: the journal of a resumed run writes them again. Raises UserError where the
    package is missing or the folder cannot be written.
    """
    try:
        module = importlib.import_module(_PACKAGES[kind])
        writer = _writer(kind, module, folder / kind)
    except ImportError as error:
        raise UserError(f"LOG_TO is {kind}, but: {error} (pip install {_PACKAGES[kind]})") from None
    except OSError as error:
        raise UserError(f"cannot write {folder / kind}: {error.strerror}") from None
    logger.info("curves: %s --logdir %s", kind, folder)

    def write(values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)
        if kind == "visualdl":
            writer.flush()  # at the end of the program nobody else does

    return write


def _writer(kind: str, module: Any, folder: Path) -> Any:
    if kind == "tensorboard":
        # Step 0 withdraws all earlier points; a TensorBoard that is running would not notice that files are gone. A
        # queue without an end: where the disk is full nobody empties it, and training would wait for that.
        return module.SummaryWriter(str(folder), purge_step=0, max_queue=0, flush_secs=10)
    for file in folder.glob("vdlrecords.*"):  # it has no other way to withdraw points
        file.unlink()
    return module.LogWriter(str(folder))
