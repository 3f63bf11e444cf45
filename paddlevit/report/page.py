"""The page of a run: title, headline figures, curves, predictions, configuration."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Callable

from paddlevit.report import figures
from paddlevit.report.chart import Series, line_chart
from paddlevit.report.document import write_document
from paddlevit.report.history import History, Record
from paddlevit.report.predictions import Predictions, prediction_sections
from paddlevit.report.runs import Run, read_run


@dataclass(frozen=True)
class _Plot:
    title: str
    key: str
    series: tuple[str, ...]
    text: Callable[[float], str]  # writes a value for the legend and the tooltips
    show: tuple[float, ...] = ()  # values that the vertical axis covers
    scale: float = 1.0


_SERIES = {"train": "training", "model": "validation", "ema": "validation, EMA"}
_PLOTS = (
    _Plot("Loss", "loss", ("train", "model", "ema"), figures.loss),
    _Plot("Top-1 accuracy, %", "acc1", ("model", "ema"), figures.percent),
    _Plot("Top-5 accuracy, %", "acc5", ("model", "ema"), figures.percent),
    _Plot("Learning rate", "lr", ("train",), figures.rate, show=(0.0,)),
    _Plot("Images per second", "images_per_sec", ("train",), figures.speed, show=(0.0,)),
    _Plot("Waiting for data, % of the time", "data_wait", ("train",), figures.percent, show=(0.0, 5.0), scale=100.0),
)


def write_report(folder: Path, predictions: Predictions | None = None) -> Path:
    """Write `folder`/report.html from its metrics.jsonl and config.yaml, and return its path.

    `predictions` of the best weights add the confusion matrix, the accuracy per class and the worst mistakes. Raises
    UserError where one of the two files is missing, empty or not what its name says, or the page cannot be written.
    """
    run = read_run(folder)
    body = [
        _header(run),
        _notes(run),
        _headline(run.history),
        _curves(run),
        prediction_sections(predictions) if predictions is not None else "",
        f"<section><details><summary><h2>Configuration</h2></summary><pre>{escape(run.text)}</pre></details></section>",
    ]
    title = f"{run.network} – training report"
    return write_document(folder / "report.html", title, "\n".join(part for part in body if part))


def _header(run: Run) -> str:
    dataset = str(run.value("DATA.DATASET", ""))
    # Any folder of images is called so: its path says more.
    facts = ["" if dataset == "imagenet2012" else dataset, str(run.value("DATA.DATA_PATH", ""))]
    items = "".join(f"<li><bdi>{escape(fact)}</bdi></li>" for fact in [*facts, figures.date(run.changed)] if fact)
    name = escape(run.network)
    return f'<header><p class="kind">Training report</p><h1><bdi>{name}</bdi></h1><ul>{items}</ul></header>'


def _notes(run: Run) -> str:
    history, notes = run.history, []
    if history.closing is None:
        epochs = run.value("TRAIN.NUM_EPOCHS", 0)
        of = f" of {epochs}" if epochs else ""
        notes.append(f"This run has not finished: its last line is from epoch {history.last_epoch:g}{of}.")
    if history.unread:
        notes.append(f"Lines of metrics.jsonl that could not be read and are left out: {history.unread:,}.")
    gaps = sum(record.has_gap() for record in history.records())
    if gaps:
        notes.append(f"Lines of metrics.jsonl with a value that is not a number, a gap in its curve: {gaps:,}.")
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _headline(history: History) -> str:
    best = history.best()
    tiles = _best_tiles(best) if best is not None else []
    losses, speeds = history.numbers("loss"), history.numbers("images_per_sec")
    if losses:
        tiles.append(("training loss", figures.loss(losses[-1]), "last line"))
    if speeds:
        tiles.append(("images/s", figures.speed(statistics.median(speeds)), "training, median"))
    seconds = history.numbers("seconds")
    if seconds:
        tiles.append(("training time", figures.duration(sum(seconds)), "without validation"))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b><span>{escape(beside)}</span></dd></div>"
        for name, value, beside in tiles
    )
    return f'<dl class="headline">{cells}</dl>' if cells else ""


def _best_tiles(best: Record) -> list[tuple[str, str, str]]:
    images = best.number("num_images")
    weights = "EMA weights" if best.series == "ema" else "model weights"
    tiles = [("best top-1", best.number("acc1"), figures.percent, f"{weights}, epoch {best.epoch:g}")]
    counted = "" if math.isnan(images) else f"on {images:,.0f} images"
    tiles.append(("top-5", best.number("acc5"), figures.percent, counted))
    tiles.append(("validation loss", best.number("loss"), figures.loss, "of the best"))
    return [(name, text(value), beside) for name, value, text, beside in tiles if not math.isnan(value)]


def _curves(run: Run) -> str:
    charts = "".join(_chart(run.history, plot) for plot in _PLOTS)
    if not charts:
        return ""
    return f'<section><h2>Curves</h2>{_loss_remark(run)}<div class="charts">{charts}</div></section>'


def _chart(history: History, plot: _Plot) -> str:
    series = [
        Series(_SERIES[name], name, [(x, plot.scale * y) for x, y in history.points(name, plot.key)])
        for name in plot.series
    ]
    return line_chart(plot.title, series, history.epoch_range(), text=plot.text, show=plot.show)


def _loss_remark(run: Run) -> str:
    mixed = run.value("TRAIN.MIXUP_ALPHA", 0) or run.value("TRAIN.CUTMIX_ALPHA", 0)
    smoothed = run.value("TRAIN.SMOOTHING", 0)
    used = ["label smoothing"] * bool(smoothed) + ["mixed images"] * bool(mixed)
    if not used:
        return ""
    return f"<p>The training loss includes {' and '.join(used)}, so it may well stay above the validation loss.</p>"
