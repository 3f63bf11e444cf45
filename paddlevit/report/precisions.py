"""What `export -precision auto` measured, as a picture: time per image against top-1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddlevit.report.chart import along, axis_ticks, line_path, tick_labels
from paddlevit.report.document import write_document

_BOX = {"width": 480, "height": 300, "left": 80, "top": 34, "right": 456, "bottom": 248}  # the last four: of the plot


def write_precisions(path: Path, measured: dict[str, Any], title: str) -> Path:
    """Write an SVG of the rows of `measured` (precision, ms_per_image, top1, within), the one that was taken filled,
    those on the Pareto front joined, and the least top-1 allowed as a line; its path. Raises UserError.
    """
    rows = sorted(measured["rows"], key=lambda row: row["ms_per_image"])
    plain = next(row for row in rows if row["precision"] == "f32")
    floor = plain["top1"] + plain["drop"] - measured["max_drop"]
    x_ticks = axis_ticks(0.0, rows[-1]["ms_per_image"])
    y_ticks = axis_ticks(min(floor, *(row["top1"] for row in rows)), max(row["top1"] for row in rows))

    def place(x: float, y: float) -> tuple[float, float]:
        return along(x, x_ticks, _BOX["left"], _BOX["right"]), along(y, y_ticks, _BOX["bottom"], _BOX["top"])

    places = [place(row["ms_per_image"], row["top1"]) for row in rows]
    front = [at for i, at in enumerate(places) if all(rows[i]["top1"] > faster["top1"] for faster in rows[:i])]
    return write_document(
        path,
        "precisions.svg",
        title=title,
        plot=_BOX,
        x_ticks=[(place(tick, 0)[0], text) for tick, text in zip(x_ticks, tick_labels(x_ticks))],
        y_ticks=[(place(0, tick)[1], text) for tick, text in zip(y_ticks, tick_labels(y_ticks))],
        floor=place(0, floor)[1],
        front=line_path(front),
        rows=[{**row, "place": at, "taken": row["precision"] == measured["taken"]} for row, at in zip(rows, places)],
    )
