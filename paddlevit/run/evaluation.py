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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.calibration import CALIBRATION_FILE, Calibration, calibrate
from paddlevit.config import dumped, with_values
from paddlevit.data import EvalLoader, build_eval_loader
from paddlevit.data.imagenet_sets import SETS, SUBSETS, real_accuracy, real_labels
from paddlevit.data.tta import Averaged
from paddlevit.errors import UserError
from paddlevit.export.engines import CompiledLayer, compiled_for
from paddlevit.metrics import accuracies, class_scores
from paddlevit.models import autocast, build_model
from paddlevit.report.predictions import Predictions
from paddlevit.run.build import compare_count, known_classes, load_pretrained, with_classes
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
        outputs = Outputs(loader)
        batches = progress(loader, len(loader), "evaluation")
        result = evaluate(model, batches, autocast=autocast(config), on_batch=outputs)
        predictions = outputs.predictions(config.DATA.DATA_PATH)
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
    top = accuracies(result, config.MODEL.NUM_CLASSES, digits=3)
    averages = "balanced accuracy {balanced_acc:.3f} %, macro F1 {macro_f1:.3f} %".format(**result)
    logger.info("%s, loss %.4f on %d images; %s%s", top, result["loss"], result["num_images"], averages, how)
    if not math.isfinite(result["loss"]):
        logger.warning("images whose logits are not finite count as wrong")


class Outputs:
    """What a model says of the images of `loader`, of which every process has a share; called with each batch's logits.

    `keep_logits` for `calibrated`.
    """

    def __init__(self, loader: EvalLoader, *, keep_logits: bool = False) -> None:
        self._loader, self._keep_logits = loader, keep_logits
        self._logits: list[np.ndarray] = []
        self._confidence: list[Tensor] = []  # left on the device, for which nobody waits
        self._predicted: list[Tensor] = []

    def __call__(self, logits: Tensor) -> None:
        logits = logits.astype("float32")
        self._confidence.append(F.softmax(logits).max(axis=-1))
        self._predicted.append(logits.argmax(axis=-1))
        if self._keep_logits:
            self._logits.append(logits.numpy())

    def predictions(self, root: str) -> Predictions:
        """What was predicted for every image, which is called as below `root`."""
        source, names = self._loader.source, self._loader.class_names
        labels = np.asarray([source.label(i) for i in range(self._loader.num_images)], dtype="int64")
        predicted, confidence = self._gathered(self._predicted, "int64"), self._gathered(self._confidence, "float32")
        known = np.isfinite(confidence)  # without finite logits there is no prediction
        classes = max(len(names), labels.max(initial=0) + 1, predicted.max(initial=0) + 1)
        right = labels[known & (labels == predicted)]
        counts = [np.bincount(each, minlength=classes) for each in (labels, predicted[known], right)]
        return Predictions(
            labels=labels,
            predicted=predicted,
            confidence=confidence,
            scores=class_scores(*counts),
            class_names=names,
            names=lambda i: source.name(i).removeprefix(f"{Path(root)}/"),
            thumbnail=self._loader.thumbnail,
        )

    def calibrated(self, predictions: Predictions, folder: Path, sha256: str) -> Predictions:
        """`predictions` at the temperature that calibration.json, in `folder`, notes for weights of that checksum."""
        classes = process.all_reduce_max(self._logits[0].shape[1] if self._logits else 0)
        if not classes:
            logger.info("not calibrated: %d images have too many logits to keep", self._loader.num_images)
            return predictions
        logits = self._gathered(self._logits, "float32", classes)
        found = calibrate(logits, predictions.labels) if process.is_main() else Calibration()
        if not found.num_images:
            return predictions
        write_text(
            folder / CALIBRATION_FILE, json.dumps({**found._asdict(), "weights_sha256": sha256}, indent=1) + "\n"
        )
        logger.info(
            f"calibrated on {found.num_images} images: temperature {found.temperature:.3f}, calibration error "
            f"{found.ece_after:.2f} % ({found.ece_before:.2f} % before)"
        )
        confidence = found.probabilities(logits).max(axis=1)
        return dataclasses.replace(
            predictions, confidence=confidence, uncalibrated=predictions.confidence, calibration=found
        )

    def _gathered(self, batches: Sequence[Any], dtype: str, *width: int) -> np.ndarray:
        """The rows of all processes, each at its image."""
        rows = np.zeros([self._loader.num_images, *width], dtype)
        if batches:
            rows[self._loader.indices] = np.concatenate([np.asarray(batch) for batch in batches])
        return process.all_reduce_sum(paddle.to_tensor(rows)).numpy()


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
