"""The end of a run: its best weights, evaluated once more from their file, and the report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from yacs.config import CfgNode

from paddlevit.data import EvalLoader
from paddlevit.models import build_model
from paddlevit.report import Predictions, write_report
from paddlevit.run.build import autocast
from paddlevit.run.folder import best_path
from paddlevit.runtime import process
from paddlevit.training.engine import evaluate
from paddlevit.training.journal import Journal, progress
from paddlevit.weights import load_weights

logger = logging.getLogger(__name__)


def finish(config: CfgNode, best: dict[str, Any], loader: EvalLoader, journal: Journal) -> None:
    """Evaluate the saved best weights once more, as a user would, and write the report."""
    process.barrier()
    folder = journal.path.parent
    model = build_model(config)
    load_weights(model, best_path(folder))
    outputs: list[tuple[Tensor, Tensor]] = []
    result = evaluate(
        model,
        progress(loader, len(loader), "evaluating the best"),
        autocast=autocast(config),
        on_batch=lambda logits: outputs.append(_top1(logits)),
    )
    journal.evaluation(best["epoch"], best["weights"], result, best=True)
    predictions = _predictions(loader, outputs, str(Path(config.DATA.DATA_PATH)))
    if process.is_main():
        report = write_report(folder, predictions)
        logger.info("best weights: %s (%s, epoch %d)", best_path(folder), best["weights"], best["epoch"])
        logger.info("report: %s", report)


def _top1(logits: Tensor) -> tuple[Tensor, Tensor]:
    return F.softmax(logits.astype("float32")).max(axis=-1), logits.argmax(axis=-1)


def _predictions(loader: EvalLoader, outputs: list[tuple[Tensor, Tensor]], root: str) -> Predictions:
    """What was predicted for every validation image, gathered from all processes; images are called as below `root`."""
    confidence = np.zeros(loader.num_images, dtype="float32")
    predicted = np.zeros(loader.num_images, dtype="int64")
    if outputs:
        confidence[loader.indices] = np.concatenate([values.numpy() for values, _ in outputs])
        predicted[loader.indices] = np.concatenate([classes.numpy() for _, classes in outputs])
    source = loader.source
    return Predictions(
        labels=np.asarray([source.label(i) for i in range(loader.num_images)], dtype="int64"),
        predicted=process.all_reduce_sum(paddle.to_tensor(predicted)).numpy(),
        confidence=process.all_reduce_sum(paddle.to_tensor(confidence)).numpy(),
        class_names=loader.class_names,
        names=lambda i: source.name(i).removeprefix(f"{root}/"),
        thumbnail=loader.thumbnail,
    )
