"""Several runs side by side: their results, the keys that differ, and their curves on one page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from paddlevit.report import formats
from paddlevit.report.chart import Chart, Plot, Series, line_charts
from paddlevit.report.document import write_document
from paddlevit.report.history import Run

_OWN_TO_A_RUN = ("OUTPUT", "MODEL.RESUME")
_COLORS = 8  # run1 to run8 in style.css; after that they come again, in other strokes
_STROKES = ("", " dashed", " dotted")
_MIXING = ("TRAIN.SMOOTHING", "TRAIN.MIXUP_ALPHA", "TRAIN.CUTMIX_ALPHA", "TRAIN.MIXUP_PROB")


_PLOTS = (
    Plot("Top-1 accuracy, %", formats.percent, "acc1", ("model",)),
    Plot("Top-1 accuracy of the EMA, %", formats.percent, "acc1", ("ema",)),
    Plot("Validation loss", formats.loss, "loss", ("model",)),
    Plot("Training loss", formats.loss, "loss", ("train",)),
    Plot("Learning rate", formats.rate, "lr", ("train",), show=(0.0,)),
    Plot("Images per second", formats.speed, "images_per_sec", ("train",), show=(0.0,)),
)
_MIXED = "Label smoothing or mixed images differ between the runs, so their training losses do too."

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
    head = ["run", "model", "epochs", "best top-1", "weights", "last top-1", "macro F1", "training loss", "images/s"]
    head.append("training time")
    return [head, *([name, *_result(run)] for name, run in zip(names(runs), runs))]


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
    mixed = [key for key in _MIXING if len({str(run.value(key, None)) for run in runs}) > 1]
    return write_document(
        path,
        "comparison.html",
        title=f"{len(runs)} training runs compared" if len(runs) > 1 else "One training run",
        date=formats.date(max(run.changed for run in runs)),
        notes=_notes(runs),
        results=result_table(runs),
        styles=[_style(i) for i in range(len(runs))],
        curves=_curves(runs),
        remark=_MIXED if mixed else "",
        differences=difference_table(runs),
    )


def _result(run: Run) -> list[str]:
    history, best = run.history, run.history.best()
    done = max((record.epochs_done for record in history.records()), default=0.0)
    of = run.value("TRAIN.NUM_EPOCHS", None)
    row = [run.model, f"{done:.4g}" + (f" of {of}" if of else "")]
    if best is None:
        row += ["–"] * 4
    else:
        last = [y for _, y in history.points(best.series, "acc1") if not math.isnan(y)]
        weights = f"{best.series}, epoch {best.epoch}"
        row += [formats.percent(best.number("acc1")), weights, formats.percent(last[-1] if last else math.nan)]
        row.append(formats.percent(best.number("macro_f1")))
    trained = zip((formats.loss, formats.speed, formats.duration), history.training())
    return row + ["–" if math.isnan(value) else text(value) for text, value in trained]


def _notes(runs: Sequence[Run]) -> list[str]:
    named = list(zip(names(runs), runs))
    unfinished = [name for name, run in named if run.history.closing is None]
    damaged = [f"{name} ({run.history.unread:,})" for name, run in named if run.history.unread]
    notes = [f"Not finished: {', '.join(unfinished)}."] * bool(unfinished)
    return notes + [f"With damaged lines of metrics.jsonl, left out: {', '.join(damaged)}."] * bool(damaged)


def _style(index: int) -> str:
    return f"run{index % _COLORS + 1}{_STROKES[index // _COLORS % len(_STROKES)]}"


def _curves(runs: Sequence[Run]) -> list[Chart]:
    def series(plot: Plot) -> list[Series]:
        (kind,) = plot.series
        points = [run.history.points(kind, plot.key) for run in runs]
        named = zip(names(runs), points)
        return [Series(name, _style(i), own, markers=kind != "train") for i, (name, own) in enumerate(named)]

    lows, highs = zip(*(run.history.epoch_range() for run in runs))
    return line_charts(_PLOTS, series, (min(lows), max(highs)))
