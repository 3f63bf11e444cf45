"""Images from disk to normalised batches on the device.

Where files, lines or keys cannot be used as they are, everything here raises UserError, or MissingFileError (one too)
where there is nothing, that names them.
"""

from __future__ import annotations

from paddlevit.data.build import (
    build_decoding,
    build_eval_loader,
    build_preparation,
    build_train_loader,
    num_workers,
    open_source,
)
from paddlevit.data.loader import EvalLoader, TrainLoader

__all__ = [
    "EvalLoader",
    "TrainLoader",
    "build_decoding",
    "build_eval_loader",
    "build_preparation",
    "build_train_loader",
    "num_workers",
    "open_source",
]
