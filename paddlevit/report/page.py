"""The page of a run: headline metrics, curves, predictions, configuration."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from paddlevit.calibration import reliability
from paddlevit.report import formats
from paddlevit.report.chart import Plot, Series, line_chart, line_charts
from paddlevit.report.document import write_document
from paddlevit.report.history import Run, read_run
from paddlevit.report.predictions import Predictions, data_address, shown_predictions

_SERIES = {"train": "training", "model": "validation", "ema": "validation, EMA"}
_PLOTS = (
    Plot("Loss", formats.loss, "loss", ("train", "model", "ema")),
    Plot("Top-1 accuracy, %", formats.percent, "acc1", ("model", "ema")),
    Plot("Top-5 accuracy, %", formats.percent, "acc5", ("model", "ema")),
    Plot("Learning rate", formats.rate, "lr", ("train",), show=(0.0,)),
    Plot("Images per second", formats.speed, "images_per_sec", ("train",), show=(0.0,)),
    Plot("Waiting for data, % of the time", formats.percent, "data_wait", ("train",), show=(0.0, 5.0), scale=100.0),
)


def write_report(folder: Path, predictions: Predictions | None = None, training: Sequence[bytes] = ()) -> Path:
    """Write `folder`/report.html from its metrics.jsonl and config.yaml, and return its path.

    `predictions` of the best weights add the confusion matrix, the scores of each class, the worst mistakes and some
    correct ones; `training` are images as the model saw them, as PNG or JPEG files. Raises UserError where one of the
    two files is missing, empty or not what its name says, or the page cannot be written.
    """
    run = read_run(folder)
    dataset = str(run.value("DATA.DATASET", ""))
    # Any folder of images is called imagenet2012: its path says more.
    facts = ["" if dataset == "imagenet2012" else dataset, str(run.value("DATA.DATA_PATH", ""))]
    classes = int(run.value("MODEL.NUM_CLASSES", 0)) or 1000
    return write_document(
        folder / "report.html",
        "run.html",
        title=f"{run.model} – training report",
        model=run.model,
        facts=[fact for fact in [*facts, formats.date(run.changed), *_made_with(folder)] if fact],
        notes=_notes(run),
        tiles=_tiles(run, classes),
        curves=_curves(run, classes),
        remark=_loss_remark(run),
        predictions=shown_predictions(predictions) if predictions is not None else None,
        calibration=_calibration(predictions),
        training=[data_address(picture) for picture in training],
        best=shlex.quote(str(folder / "best.pdparams")),
        config=run.text,
    )


def _made_with(folder: Path) -> list[str]:
    """Versions, device and number of images from the run's certificate, where there is one."""
    try:
        known = json.loads((folder / "certificate.json").read_bytes())
        images, own = (known[key].partition(" ")[0] for key in ("training images", "paddlevit"))
        return [f"{images} training images", f"paddlevit {own}, PaddlePaddle {known['PaddlePaddle']}", known["device"]]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []


def _notes(run: Run) -> list[str]:
    notes = []
    if run.closing is None:
        epochs = run.value("TRAIN.NUM_EPOCHS", 0)
        of = f" of {epochs}" if epochs else ""
        notes.append(f"This run has not finished: its last line is from epoch {run.last_epoch}{of}.")
    if run.unread:
        notes.append(f"Damaged lines of metrics.jsonl, left out: {run.unread:,}.")
    return notes


def _tiles(run: Run, classes: int) -> list[tuple[str, str, str]]:
    """Name, value and detail of what the run has reached."""
    tiles: list[tuple[str, float, Callable[[float], str], str]] = []
    best = run.best()
    if best is not None:
        images = best.number("num_images")
        weights = "EMA weights" if best.series == "ema" else "model weights"
        counted = "" if math.isnan(images) else f"on {images:,.0f} images"
        balanced = f"balanced accuracy {formats.percent(best.number('balanced_acc'))}"
        tiles = [
            ("best top-1", best.number("acc1"), formats.percent, f"{weights}, epoch {best.epoch}"),
            ("top-5", best.number("acc5") if classes > 5 else math.nan, formats.percent, counted),
            ("macro F1", best.number("macro_f1"), formats.percent, balanced),
            ("validation loss", best.number("loss"), formats.loss, "of the best"),
        ]
    loss, speed, seconds = run.training()
    tiles += [
        ("training loss", loss, formats.loss, "last line"),
        ("images/s", speed, formats.speed, "training, median"),
        ("training time", seconds, formats.duration, "without validation"),
    ]
    return [(name, text(value), detail) for name, value, text, detail in tiles if not math.isnan(value)]


def _curves(run: Run, classes: int) -> list[dict[str, Any]]:
    def series(plot: Plot) -> list[Series]:
        points = {name: run.points(name, plot.key) for name in plot.series}
        return [Series(_SERIES[name], name, [(x, plot.scale * y) for x, y in own]) for name, own in points.items()]

    plots = [plot for plot in _PLOTS if plot.key != "acc5" or classes > 5]  # else it is a straight line
    return line_charts(plots, series, run.epoch_range())


def _calibration(of: Predictions | None) -> dict[str, Any]:
    """The reliability diagram, with the calibration errors in its legend, and what stands above it."""
    if of is None or of.uncalibrated is None:
        return {"drawn": [], "remark": ""}
    found, known = of.calibration, np.isfinite(of.confidence)
    right = (of.labels == of.predicted)[known]
    before, after = (reliability(each[known], right)[1] for each in (of.uncalibrated, of.confidence))
    series = [Series("uncalibrated, ECE", "train", before), Series("calibrated, ECE", "model", after)]
    series.append(Series("ideal", "run8 dotted", [(0.0, 0.0), (100.0, 100.0)], markers=False))
    chart = line_chart(Plot("Accuracy, %", formats.percent), series, (0, 100))
    assert chart is not None
    chart["x_name"] = "probability in %"
    legend = formats.percent(found.ece_before), formats.percent(found.ece_after), ""
    for curve, last in zip(chart["curves"], legend):
        curve["last"] = last
    remark = (
        f"Probabilities of predict, serve and Classifier are softmax(logits / {found.temperature:.3f}). An image with "
        f"an energy above {found.max_energy:.3f} counts as none of the classes; 5 % of the {found.num_images:,} "
        "validation images, on which both were fitted, have that. A point is one of 15 bins; few images make it noisy."
    )
    return {"drawn": [chart], "remark": remark}


def _loss_remark(run: Run) -> str:
    used = ["label smoothing"] * bool(run.value("TRAIN.SMOOTHING", 0))
    used += ["mixed images"] * bool(run.value("TRAIN.MIXUP_ALPHA", 0) or run.value("TRAIN.CUTMIX_ALPHA", 0))
    remark = f"The training loss includes {' and '.join(used)}, so it may well stay above the validation loss."
    return remark if used else ""
