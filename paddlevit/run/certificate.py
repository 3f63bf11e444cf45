"""A run's certificate: what it was made of, whether that is still so, and whether its steps can be repeated."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from yacs.config import CfgNode

import paddlevit
from paddlevit.config import get_config
from paddlevit.data import build_train_loader
from paddlevit.data.sources import Source
from paddlevit.errors import MissingFileError, UserError
from paddlevit.report.history import read_run
from paddlevit.run.build import build_trainer, known_classes
from paddlevit.run.folder import load_state
from paddlevit.runtime import kernels, process
from paddlevit.runtime.files import fingerprint, sha256, write_text
from paddlevit.runtime.settings import processor
from paddlevit.training import checkpoint
from paddlevit.training.engine import Batches, Trainer
from paddlevit.training.journal import progress
from paddlevit.weights import read_state_dict

FILE = "certificate.json"
_TOLERANCE = 1e-3  # of losses, where the device does not repeat itself bit for bit


class Finding(NamedTuple):
    """What was looked at, what was found, and whether it is as it should be."""

    what: str
    found: str
    same: bool


def certify(folder: Path, config: CfgNode, source: Source) -> None:
    """Write certificate.json: hashes of package, configuration, list of images and weights, and versions."""
    made_of = {**_made_of(folder, config, source), "processes": process.world_size()}
    write_text(folder / FILE, json.dumps(made_of, indent=1) + "\n")


def _made_of(folder: Path, config: CfgNode, source: Source) -> dict[str, Any]:
    package, root = Path(paddlevit.__file__).parent, f"{Path(config.DATA.DATA_PATH)}/"
    files = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.cpp")]):
        files.update(str(path.relative_to(package)).encode() + path.read_bytes())
    images = hashlib.sha256(np.asarray(source.labels, "int64").tobytes())
    for i in range(len(source)):
        images.update(source.name(i).removeprefix(root).encode("utf-8", "surrogateescape") + b"\n")
    of_run = [*folder.glob("best.pdparams"), *folder.glob("epoch_*.pdparams")]  # an average may lie there too
    weights = {path.name: sha256(path) for path in sorted(of_run)}
    return {
        "paddlevit": f"{paddlevit.__version__} ({files.hexdigest()})",
        "PaddlePaddle": paddle.__version__,
        "device": paddle.device.get_device(),
        "machine": f"{processor()[1]}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}"
        + (", compiled operators" if paddle.device.get_device() == "cpu" and kernels.library() else ""),
        "configuration": sha256(folder / "config.yaml"),
        "training images": f"{len(source):,} ({images.hexdigest()})",
        **weights,
    }


def read_certificate(folder: Path) -> dict[str, Any]:
    """The certificate of the run in `folder`. Raises MissingFileError or UserError."""
    try:
        known = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{folder / FILE} does not exist: a run writes it when it ends") from None
    except ValueError:
        raise UserError(f"{folder / FILE} is damaged: it holds no JSON") from None
    if not isinstance(known, dict) or not isinstance(known.get("device"), str) or "processes" not in known:
        raise UserError(f"{folder / FILE} is not the certificate of a run")
    return known


def verify(
    folder: Path, known: dict[str, Any], steps: int | None = None, data_path: str | None = None
) -> Iterator[Finding]:
    """What has changed since the run in `folder` was certified as `known`, and a replay of at least `steps` of its
    steps (None: up to the first whose weights were noted). Raises UserError where nothing can be replayed.
    """
    config = get_config(folder / "config.yaml", ["DATA.DATA_PATH", data_path] if data_path else [])
    paths = checkpoint.all_in(folder)
    loader = build_train_loader(config, classes=known_classes(config, paths[0] if paths else None))
    made_of = _made_of(folder, config, loader.source)
    for what in dict.fromkeys([*made_of, *(key for key in known if key != "processes")]):
        before, now = known.get(what, "not there"), made_of.get(what, "gone")
        yield Finding(what, "as certified" if now == before else f"was {before}, now {now}", now == before)
    if known["processes"] != 1:
        raise UserError(f"{folder} was trained by {known['processes']} processes; only runs of one can be replayed")
    start, lines = _start(folder, config.TRAIN.LAST_EPOCH)
    trainer = build_trainer(config, loader.steps_per_epoch, pretrained=start is None, labels=loader.source.labels)
    if start is not None:
        load_state(trainer, checkpoint.load(start, read_state_dict), start)
    yield _replay(trainer, loader.epoch(trainer.epoch), lines, steps or 1)


def _start(folder: Path, first: int) -> tuple[Path | None, list[dict[str, Any]]]:
    """The last checkpoint that a noted epoch follows, and the training lines of that epoch; without one None, the start
    of the run, after `first` epochs.
    """
    noted: dict[int, list[dict[str, Any]]] = {}
    for record in read_run(folder).series["train"]:
        noted.setdefault(int(record.epoch), []).append(record.values)
    ends = [path for path in checkpoint.all_in(folder) if path.stem[6:].isdigit()]  # of epochs
    starts: list[tuple[Path | None, int]] = [(path, int(path.stem[6:])) for path in reversed(ends)]
    if not any(folder.glob("config.*.yaml")):  # or the start was of other settings; earlier checkpoints may be too
        starts.append((None, first))
    for path, done in starts:
        lines = noted.get(done + 1, [])
        if lines and {"weights_sha256", "steps", "loss"} <= lines[0].keys():
            return path, lines
    raise UserError(f"{folder} keeps neither a checkpoint before a noted epoch nor its first epoch: nothing to replay")


def _replay(trainer: Trainer, batches: Batches, lines: list[dict[str, Any]], steps: int) -> Finding:
    """Train again from where the trainer stands, until a line of metrics.jsonl that is `steps` away or more."""
    exact, coming, first = paddle.device.get_device() == "cpu", iter(lines), trainer.epoch
    losses: list[float] = []
    line: Any = next(coming)
    trainer.model.train()
    for images, labels in progress(batches, min(trainer.steps_per_epoch, max(steps, line["step"])), "replaying"):
        losses.append(trainer.train_step(images, labels).item())
        if trainer.step < line["step"]:
            continue
        loss, done = float(np.mean(np.array(losses[-line["steps"] :], "float32"))), trainer.step
        what = f"steps 1 to {done} of epoch {first + 1}, again"
        if loss != line["loss"] and (exact or abs(loss - line["loss"]) > _TOLERANCE * abs(line["loss"])):
            return Finding(what, f"the loss is {loss!r}, and was {line['loss']!r}", same=False)
        weights = line.get("weights_sha256")
        if exact and weights and fingerprint(trainer.model.state_dict()) != weights:
            return Finding(what, "the loss is equal, the weights are not", same=False)
        line = next(coming, None)
        if done >= steps or line is None:
            return Finding(what, "equal bit for bit" if exact else f"losses equal to {_TOLERANCE:g}", same=True)
    raise AssertionError("the first line comes before the end of the epoch")
