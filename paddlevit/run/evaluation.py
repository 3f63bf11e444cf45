"""Evaluation of weights: the numbers, and what was predicted for every image."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.calibration import CALIBRATION_FILE, calibrate
from paddlevit.config import dumped, with_values
from paddlevit.data import EvalLoader, build_eval_loader
from paddlevit.data.imagenet_sets import SETS, SUBSETS, real_accuracy, real_labels
from paddlevit.data.tta import Averaged
from paddlevit.errors import UserError
from paddlevit.export.engines import CompiledLayer, compiled_for
from paddlevit.metrics import accuracies, class_scores
from paddlevit.models import build_model
from paddlevit.report.predictions import Predictions
from paddlevit.run.build import autocast, compare_count, known_classes, load_pretrained, with_classes
from paddlevit.run.folder import open_folder
from paddlevit.runtime import process
from paddlevit.runtime.files import write_text
from paddlevit.runtime.launcher import heartbeat
from paddlevit.training.engine import evaluate
from paddlevit.training.journal import progress, with_nulls
from paddlevit.training.objectives import Restricted

logger = logging.getLogger(__name__)

_FOR_RANGES = 512


def validate(config: CfgNode) -> int:
    """Evaluate the weights that `config` names on the validation images and write eval.json; 0."""
    if not config.MODEL.PRETRAINED or config.MODEL.RESUME:
        raise UserError("-eval needs the weights to evaluate: -pretrained FILE")
    config = with_values(config, {"MODEL.REINIT_HEAD": False})  # the run's own file has it; its head is trained by now
    with open_folder(config) as folder:
        if config.AMP:
            process.check_amp(config.AMP_DTYPE)
        config, classes = with_classes(config, "val", known_classes(config, None))
        loader = build_eval_loader(config, rank=process.rank(), world_size=process.world_size(), classes=classes)
        if config.DATA.DATASET == "imagenet-real" and config.MODEL.NUM_CLASSES != 1000:
            raise UserError(f"imagenet-real is for models of ImageNet's 1,000 classes, not {config.MODEL.NUM_CLASSES}")
        compare_count(config, loader.source)
        model, how = _model(config, loader)
        outputs: list[tuple[Tensor, Tensor]] = []
        result = evaluate(
            model,
            progress(loader, len(loader), "evaluation"),
            autocast=autocast(config),
            on_batch=lambda logits: outputs.append(top1(logits)),
        )
        predictions = gathered(loader, outputs, config.DATA.DATA_PATH)
        if config.DATA.DATASET == "imagenet-real":
            names = [predictions.names(i) for i in range(len(predictions.labels))]
            predicted = np.where(np.isfinite(predictions.confidence), predictions.predicted, -1)
            result = real_accuracy(predicted, real_labels(Path(config.DATA.DATA_PATH), names))
        _log(result, config)
        if process.is_main():
            write_per_class(folder, predictions)
            if config.SAVE_PREDICTIONS:
                _write_predictions(folder, predictions)
            record = with_nulls({**result, "weights": config.MODEL.PRETRAINED, **how})
            write_text(folder / "eval.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            if not (folder / "config.yaml").exists():  # a training run's stays
                write_text(folder / "config.yaml", dumped(config))
            logger.info("written to %s", folder / "eval.json")
    return 0


def _model(config: CfgNode, loader: EvalLoader) -> tuple[nn.Layer, dict[str, str]]:
    """The model with its weights, by ENGINE in PRECISION, with TTA, and what eval.json says of these."""
    model = build_model(config)
    load_pretrained(config, model)
    shape = [config.DATA.IMAGE_CHANNELS, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE]
    # An evaluation set has no training images, on which int8 finds its ranges.
    images = None if config.DATA.DATASET in SETS else functools.partial(_training_images, config)
    exported = compiled_for(model, shape, config.ENGINE, config.PRECISION, images=images)
    how = {"engine": "paddle"}
    if exported:
        model, how = CompiledLayer(exported), {"engine": exported.engine, "precision": exported.precision}
        logger.info("computed by %s in %s", exported.engine, exported.precision)
    if config.TTA != "none":
        model, how["tta"] = Averaged(model, config.TTA), config.TTA
    if config.DATA.DATASET in SUBSETS:
        model = Restricted(model, np.unique(loader.source.labels), config.MODEL.NUM_CLASSES)
    return model, how


def _training_images(config: CfgNode) -> list[np.ndarray]:
    """One by one, as many as `export -precision int8` takes."""
    loader = build_eval_loader(config, "train", most=_FOR_RANGES)
    found = []
    for images, _ in progress(loader, len(loader), "images"):
        heartbeat()
        found += [image[None] for image in images.numpy()]
    return found


def _log(result: dict[str, Any], config: CfgNode) -> None:
    how = "" if config.TTA == "none" else f", with test-time augmentation ({config.TTA})"
    if result["loss"] is None:
        logger.info("ReaL top-1 %.3f %% on the %d images that have labels%s", result["acc1"], result["num_images"], how)
        return
    logger.info(
        "%s, loss %.4f on %d images; balanced accuracy %.3f %%, macro F1 %.3f %%%s",
        accuracies(result, config.MODEL.NUM_CLASSES, digits=3),
        *(result[k] for k in ("loss", "num_images", "balanced_acc", "macro_f1")),
        how,
    )
    if not math.isfinite(result["loss"]):
        logger.warning("images whose logits are not finite count as wrong")


def top1(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and number of the top-1 class, [N] each, of logits [N, K]."""
    return F.softmax(logits.astype("float32")).max(axis=-1), logits.argmax(axis=-1)


def gathered(loader: EvalLoader, outputs: list[tuple[Tensor, Tensor]], root: str) -> Predictions:
    """What was predicted for every validation image, gathered from all processes; images are called as below `root`."""
    confidence = np.zeros(loader.num_images, dtype="float32")
    predicted = np.zeros(loader.num_images, dtype="int64")
    if outputs:
        confidence[loader.indices] = np.concatenate([values.numpy() for values, _ in outputs])
        predicted[loader.indices] = np.concatenate([classes.numpy() for _, classes in outputs])
    source = loader.source
    labels = np.asarray([source.label(i) for i in range(loader.num_images)], dtype="int64")
    predicted = process.all_reduce_sum(paddle.to_tensor(predicted)).numpy()
    confidence = process.all_reduce_sum(paddle.to_tensor(confidence)).numpy()
    known = np.isfinite(confidence)  # without finite logits there is no prediction
    classes = max(len(loader.class_names), labels.max(initial=0) + 1, predicted.max(initial=0) + 1)
    right = labels[known & (labels == predicted)]
    counts = [np.bincount(each, minlength=classes) for each in (labels, predicted[known], right)]
    return Predictions(
        labels=labels,
        predicted=predicted,
        confidence=confidence,
        scores=class_scores(*counts),
        class_names=loader.class_names,
        names=lambda i: source.name(i).removeprefix(f"{Path(root)}/"),
        thumbnail=loader.thumbnail,
    )


def calibrated(
    folder: Path, sha256: str, loader: EvalLoader, logits: list[np.ndarray], predictions: Predictions
) -> Predictions:
    """`predictions` with calibrated probabilities, and calibration.json in `folder` for the weights with this checksum.

    `logits` [N, K] are those of this process's batches; none, where they were too many to keep.
    """
    classes = process.all_reduce_max(logits[0].shape[1] if logits else 0)
    if not classes:
        logger.info("not calibrated: %d images have too many logits to keep", loader.num_images)
        return predictions
    everything = np.zeros([loader.num_images, classes], "float32")
    if logits:
        everything[loader.indices] = np.concatenate(logits)
    everything = process.all_reduce_sum(paddle.to_tensor(everything)).numpy()
    if not process.is_main():
        return predictions
    found = calibrate(everything, predictions.labels)
    if not found.num_images:
        return predictions
    record = {**found._asdict(), "weights_sha256": sha256}
    write_text(folder / CALIBRATION_FILE, json.dumps(record, indent=1) + "\n")
    logger.info(
        "calibrated on %d images: temperature %.3f, calibration error %.2f %% (%.2f %% before)",
        *(found.num_images, found.temperature, found.ece_after, found.ece_before),
    )
    confidence = found.probabilities(everything).max(axis=1)
    return dataclasses.replace(
        predictions, confidence=confidence, uncalibrated=predictions.confidence, calibration=found
    )


def write_per_class(folder: Path, predictions: Predictions) -> None:
    """Write `folder`/per_class.csv: images, precision, recall and F1 of each class."""
    images = np.bincount(predictions.labels, minlength=predictions.num_classes)
    scores = [[f"{value:.4f}" for value in predictions.scores[key]] for key in ("precision", "recall", "f1")]
    names = map(predictions.class_name, range(predictions.num_classes))
    _write_csv(folder / "per_class.csv", ["class", "images", "precision", "recall", "f1"], zip(names, images, *scores))


def _write_predictions(folder: Path, predictions: Predictions) -> None:
    of, name = predictions, predictions.class_name
    rows = ((of.names(i), name(of.labels[i]), name(of.predicted[i]), of.confidence[i]) for i in range(len(of.labels)))
    _write_csv(folder / "predictions.csv", ["image", "class", "predicted", "probability"], rows)


def _write_csv(path: Path, head: list[str], rows: Iterable) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(itertools.chain([head], rows))
    write_text(path, text.getvalue())
