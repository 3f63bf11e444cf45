"""The page as a whole: title, headline figures, curves, predictions, configuration."""

import math
import os
import statistics
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Callable, Optional

import yaml

from paddlevit.errors import MissingFileError, UserError
from paddlevit.report.chart import Series, line_chart
from paddlevit.report.history import History, Record, read_history
from paddlevit.report.predictions import Predictions, prediction_sections

_HERE = Path(__file__).parent

# Even if a name slipped through unescaped, a browser would neither fetch anything nor run a script from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def _loss(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def _percent(value: float) -> str:
    return f"{value:.2f} %"


def _rate(value: float) -> str:
    return f"{value:.3g}".replace("e-0", "e-")


def _speed(value: float) -> str:
    return f"{value:,.0f}"


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
    _Plot("Loss", "loss", ("train", "model", "ema"), _loss),
    _Plot("Top-1 accuracy, %", "acc1", ("model", "ema"), _percent),
    _Plot("Top-5 accuracy, %", "acc5", ("model", "ema"), _percent),
    _Plot("Learning rate", "lr", ("train",), _rate, show=(0.0,)),
    _Plot("Images per second", "images_per_sec", ("train",), _speed, show=(0.0,)),
    _Plot("Waiting for data, % of the time", "data_wait", ("train",), _percent, show=(0.0, 5.0), scale=100.0),
)


def write_report(folder: Path, predictions: Optional[Predictions] = None) -> Path:
    """Write `folder`/report.html from its metrics.jsonl and config.yaml, and return its path.

    `predictions` of the best weights add the confusion matrix, the accuracy per class and the worst mistakes. Raises
    UserError where one of the two files is missing, empty or not what its name says, or the page cannot be written.
    """
    history = read_history(folder / "metrics.jsonl")
    text, config = _read_config(folder / "config.yaml")
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / "metrics.jsonl").stat().st_mtime))
    name = str(_value(config, "MODEL.NAME", "") or folder.resolve().name)
    body = [
        _header(name, config, date),
        _notes(history, config),
        _headline(history),
        _curves(history, config),
        prediction_sections(predictions) if predictions is not None else "",
        f"<section><details><summary><h2>Configuration</h2></summary><pre>{escape(text)}</pre></details></section>",
    ]
    page = _PAGE.format(
        policy=_POLICY,
        title=f"{escape(name)} – training report",
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        body="\n".join(part for part in body if part),
        script=(_HERE / "tooltip.js").read_text(encoding="utf-8"),
    )
    return _write(folder / "report.html", page)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist: a report needs the configuration of the run") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a yaml file: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no keys")
    return text, config


def _value(config: dict[str, Any], key: str, default: Any) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return default if node is None else node


def _write(path: Path, page: str) -> Path:
    part = path.with_name(f"{path.name}.part")
    try:
        # File names that are no valid Unicode come as surrogates, which a page cannot hold.
        part.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path


def _header(name: str, config: dict[str, Any], date: str) -> str:
    facts = [str(_value(config, "DATA.DATASET", "")), str(_value(config, "DATA.DATA_PATH", "")), date]
    items = "".join(f"<li><bdi>{escape(fact)}</bdi></li>" for fact in facts if fact)
    return f'<header><p class="kind">Training report</p><h1><bdi>{escape(name)}</bdi></h1><ul>{items}</ul></header>'


def _notes(history: History, config: dict[str, Any]) -> str:
    notes = []
    if history.closing is None:
        epochs = _value(config, "TRAIN.NUM_EPOCHS", 0)
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
        tiles.append(("training loss", _loss(losses[-1]), "last line"))
    if speeds:
        tiles.append(("images/s", _speed(statistics.median(speeds)), "training, median"))
    seconds = history.numbers("seconds")
    if seconds:
        tiles.append(("training time", _duration(sum(seconds)), "without validation"))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b><span>{escape(beside)}</span></dd></div>"
        for name, value, beside in tiles
    )
    return f'<dl class="headline">{cells}</dl>' if cells else ""


def _best_tiles(best: Record) -> list[tuple[str, str, str]]:
    images = best.number("num_images")
    weights = "EMA weights" if best.series == "ema" else "model weights"
    tiles = [("best top-1", best.number("acc1"), _percent, f"{weights}, epoch {best.epoch:g}")]
    tiles.append(("top-5", best.number("acc5"), _percent, "" if math.isnan(images) else f"on {images:,.0f} images"))
    tiles.append(("validation loss", best.number("loss"), _loss, "of the best"))
    return [(name, text(value), beside) for name, value, text, beside in tiles if not math.isnan(value)]


def _curves(history: History, config: dict[str, Any]) -> str:
    charts = "".join(_chart(history, plot) for plot in _PLOTS)
    if not charts:
        return ""
    return f'<section><h2>Curves</h2>{_loss_remark(config)}<div class="charts">{charts}</div></section>'


def _chart(history: History, plot: _Plot) -> str:
    series = [
        Series(_SERIES[name], name, [(x, plot.scale * y) for x, y in history.points(name, plot.key)])
        for name in plot.series
    ]
    return line_chart(plot.title, series, history.epoch_range(), text=plot.text, show=plot.show)


def _loss_remark(config: dict[str, Any]) -> str:
    mixed = _value(config, "TRAIN.MIXUP_ALPHA", 0) or _value(config, "TRAIN.CUTMIX_ALPHA", 0)
    smoothed = _value(config, "TRAIN.SMOOTHING", 0)
    used = ["label smoothing"] * bool(smoothed) + ["mixed images"] * bool(mixed)
    if not used:
        return ""
    return f"<p>The training loss includes {' and '.join(used)}, so it may well stay above the validation loss.</p>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
