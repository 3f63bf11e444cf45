"""Checkpoints: complete, verified, and replaced atomically.

A checkpoint is `<stem>.pdparams`, with an EMA `<stem>_ema.pdparams`, and `<stem>.pdstate`, which is written last and
holds checksums of the others: without it, or where they do not match, the checkpoint does not count. The stem is
epoch_<NNN> after that many epochs, epoch_<NNN>_step_<NNNNNN> in the middle of the next. A .pdstate is an .npz archive
without pickles: nothing in it can run.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor

from paddlevit.errors import MissingFileError, UserError
from paddlevit.runtime.files import sha256, write_file

logger = logging.getLogger(__name__)

_WEIGHTS = (".pdparams", "_ema.pdparams")
_HALF = (paddle.float16, paddle.bfloat16)
_STEM = re.compile(r"epoch_(\d+)(?:_step_(\d+))?")


def save(folder: Path, state: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint of `state` (see Trainer.state), drop all but the newest `keep`, and return its .pdstate.

    Raises UserError where the folder cannot be written or the disk is full; earlier checkpoints stay as they were.
    """
    path = _path(folder, state["progress"])
    try:
        _write_all(path, state)
    except UserError:
        if not path.exists():  # weights alone are no use, and the disk may be full
            _remove_weights(path)
        raise
    for part in folder.glob("epoch_*.part"):  # left by a run that was killed while it wrote; others' are not ours
        part.unlink(missing_ok=True)
    for old in all_in(folder)[:-keep]:
        old.unlink()  # first, so that no half checkpoint looks complete
        _remove_weights(old)
    return path


def save_once(folder: Path, state: dict[str, Any], *, keep: int) -> Path | None:
    """`save` by the first of several processes that come to it at about the same time; None for the others."""
    path = _path(folder, state["progress"])
    claim = path.with_name(f"{path.name}.claim.part")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return None
    try:
        return None if path.exists() else save(folder, state, keep=keep)
    finally:
        claim.unlink(missing_ok=True)


def _path(folder: Path, progress: dict[str, Any]) -> Path:
    step = f"_step_{progress['step']:06d}" if progress["step"] else ""
    return folder / f"epoch_{progress['epoch']:03d}{step}.pdstate"


def _write_all(path: Path, state: dict[str, Any]) -> None:
    sums = {}
    for suffix, weights in zip(_WEIGHTS, (state["model"], state["ema"])):
        if weights is not None:
            file = path.with_name(f"{path.stem}{suffix}")
            write_weights(file, weights)
            sums[file.name] = sha256(file)
    arrays = {f"optimizer/{name}": value for name, value in state["optimizer"].items()}
    arrays["progress"] = np.asarray(json.dumps({**state["progress"], "sha256": sums}))

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)

    write_file(path, write)


def _remove_weights(path: Path) -> None:
    for suffix in _WEIGHTS:
        path.with_name(f"{path.stem}{suffix}").unlink(missing_ok=True)


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a plain state dict, atomically; weights in half precision as float32, which every program reads."""
    full = {name: value.astype("float32") if value.dtype in _HALF else value for name, value in weights.items()}
    write_file(path, lambda part: paddle.save(full, str(part)))


def drop_newer(path: Path) -> list[str]:
    """Delete checkpoints next to `path` that are newer, so that nobody resumes from them; returns their stems."""
    newer = [other for other in all_in(path.parent) if _position(other) > _position(path)]
    for other in newer:
        other.unlink()
    return [other.stem for other in newer]


def find(where: Path) -> Path:
    """The .pdstate that `where` names: a checkpoint, with or without a suffix, or the newest complete one of a folder.

    Raises MissingFileError where there is none, UserError where the one that was named is damaged.
    """
    if where.is_dir():
        found = newest(where)
        if found is None:
            raise MissingFileError(f"-resume {where}: the folder holds no complete checkpoint (epoch_<NNN>.pdstate)")
        return found
    path = where.with_suffix(".pdstate")
    if not path.is_file():
        raise MissingFileError(f"-resume {where}: there is no {path}; name a checkpoint (epoch_<NNN>) or a run")
    damage = _damage(path)
    if damage:
        raise UserError(f"-resume {where}: {damage}")
    return path


def newest(folder: Path) -> Path | None:
    """The .pdstate of the newest complete checkpoint in `folder`; the log names the damaged ones that it skips."""
    for path in reversed(all_in(folder)):
        damage = _damage(path)
        if not damage:
            return path
        logger.warning("skipping a checkpoint: %s", damage)
    return None


def load(path: Path, read_weights: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, Any]:
    """What `save` wrote: "model", "ema" (None without one), "optimizer", "progress". UserError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            progress = json.loads(str(archive["progress"]))
            optimizer = {key[len("optimizer/") :]: archive[key] for key in archive.files if key != "progress"}
    except Exception as error:  # what a damaged archive makes zipfile and NumPy raise is not documented
        raise UserError(f"{path} cannot be read ({error})") from None
    model, ema = (path.with_name(f"{path.stem}{suffix}") for suffix in _WEIGHTS)
    return {
        "model": read_weights(model),
        "ema": read_weights(ema) if ema.name in progress["sha256"] else None,
        "optimizer": optimizer,
        "progress": progress,
    }


def all_in(folder: Path) -> list[Path]:
    """Every .pdstate of `folder`, oldest first."""
    return sorted((path for path in folder.glob("epoch_*.pdstate") if _STEM.fullmatch(path.stem)), key=_position)


def _position(path: Path) -> tuple[int, int]:
    """Epochs and further steps that were done at a checkpoint."""
    match = _STEM.fullmatch(path.stem)
    assert match is not None, path
    return int(match[1]), int(match[2] or 0)


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty where it is complete."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            broken = archive.zip.testzip()
            sums = {path.with_name(name): own for name, own in json.loads(str(archive["progress"]))["sha256"].items()}
    except Exception as error:  # what a damaged archive makes zipfile and NumPy raise is not documented
        return f"{path} cannot be read ({error})"
    if broken:
        return f"{path} is damaged (corrupt member {broken})"
    if path.with_suffix(".pdparams") not in sums:
        return f"{path} is another checkpoint's, renamed"
    for weights, expected in sums.items():
        if not weights.is_file():
            return f"{weights}, which belongs to {path.name}, is missing"
        if sha256(weights) != expected:
            return f"{weights} is not what was saved (its checksum differs)"
    return ""
