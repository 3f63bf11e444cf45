"""Several runs side by side: their results, the keys that differ, and their curves on one page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlevit.report import formats
from paddlevit.report.chart import Plot, Series, line_charts
from paddlevit.report.document import write_document
from paddlevit.report.history import Run

_OWN_TO_A_RUN = ("OUTPUT", "MODEL.RESUME")
_COLORS = 8  # run1 to run8 in style.css; after that they come again, in other strokes
_STROKES = ("", " dashed", " dotted")
_PLOTS = (
    Plot("Top-1 accuracy, %", formats.percent, "acc1", ("model",)),
    Plot("Top-1 accuracy of the EMA, %", formats.percent, "acc1", ("ema",)),
    Plot("Validation loss", formats.loss, "loss", ("model",)),
    Plot("Training loss", formats.loss, "loss", ("train",)),
    Plot("Learning rate", formats.rate, "lr", ("train",), show=(0.0,)),
    Plot("Images per second", formats.speed, "images_per_sec", ("train",), show=(0.0,)),
)

Table = list[list[str]]


def names(runs: Sequence[Run]) -> list[str]:
    """What to call each run: its folder's name, with as many folders above it as make all names differ."""
    parts = [run.folder.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts))):
        short = [os.path.join(*own[-length:]) for own in parts]
        if len(set(short)) == len(set(parts)):
            return short
    return [str(run.folder) for run in runs]


def result_table(runs: Sequence[Run]) -> Table:
    """A head, and a row per run: what it is, and what it reached; "–" where it has none."""
    rows = [_result(name, run) for name, run in zip(names(runs), runs)]
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def difference_table(runs: Sequence[Run]) -> Table:
    """A head, and a row per key of the configuration that is not the same in all runs; without such a key the head."""
    configs = [
        {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in run.config.items()}
        for run in runs
    ]
    keys = sorted({key for config in configs for key in config if not key.startswith(_OWN_TO_A_RUN)})
    rows = [[key, *(config.get(key, "–") for config in configs)] for key in keys]
    return [["key", *names(runs)], *(row for row in rows if len(set(row[1:])) > 1)]


def write_comparison(runs: Sequence[Run], path: Path) -> Path:
    """Write the page that compares the runs, and return its path. Raises UserError where it cannot be written."""
    return write_document(
        path,
        "comparison.html",
        title=f"{len(runs)} training runs compared" if len(runs) > 1 else "One training run",
        date=formats.date(max(run.changed for run in runs)),
        notes=_notes(runs),
        results=result_table(runs),
        styles=[_style(i) for i in range(len(runs))],
        curves=_curves(runs),
        differences=difference_table(runs),
    )


def _result(name: str, run: Run) -> dict[str, str]:
    best, of = run.best(), run.value("TRAIN.NUM_EPOCHS", None)
    done = max((record.epochs_done for record in run.records()), default=0.0)
    loss, speed, seconds = run.training()
    return {
        "run": name,
        "model": run.model,
        "epochs": f"{done:.4g}" + (f" of {of}" if of else ""),
        "best top-1": formats.percent(best.number("acc1")) if best else "–",
        "weights": f"{best.series}, epoch {best.epoch}" if best else "–",
        "last top-1": formats.percent(run.numbers(best.series, "acc1")[-1]) if best else "–",
        "macro F1": formats.percent(best.number("macro_f1")) if best else "–",
        "training loss": formats.loss(loss),
        "images/s": formats.speed(speed),
        "training time": formats.duration(seconds),
    }


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = {
        "Not finished": [name for name, run in zip(names(runs), runs) if run.closing is None],
        "With damaged lines of metrics.jsonl, left out": [
            f"{name} ({run.unread:,})" for name, run in zip(names(runs), runs) if run.unread
        ],
    }
    return [f"{what}: {', '.join(which)}." for what, which in notes.items() if which]


def _style(index: int) -> str:
    return f"run{index % _COLORS + 1}{_STROKES[index // _COLORS % len(_STROKES)]}"


def _curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    def series(plot: Plot) -> list[Series]:
        (kind,) = plot.series
        named = enumerate(zip(names(runs), runs))
        return [Series(name, _style(i), run.points(kind, plot.key), kind != "train") for i, (name, run) in named]

    lows, highs = zip(*(run.epoch_range() for run in runs))
    return line_charts(_PLOTS, series, (min(lows), max(highs)))
