"""What `export -precision auto` measured, as a picture: time per image against top-1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddlevit.report.chart import along, axis_ticks, tick_labels
from paddlevit.report.document import write_document

_WIDTH, _HEIGHT = 480, 300
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 34, 456, 248  # edges of the plot


def write_precisions(path: Path, measured: dict[str, Any], title: str) -> Path:
    """Write an SVG of the rows of `measured` (precision, ms_per_image, top1, within), the one that was taken filled,
    those on the Pareto front joined, and the least top-1 allowed as a line; its path. Raises UserError.
    """
    rows = sorted(measured["rows"], key=lambda row: row["ms_per_image"])
    plain = next(row for row in rows if row["precision"] == "f32")
    floor = plain["top1"] + plain["drop"] - measured["max_drop"]
    x_ticks = axis_ticks(0.0, rows[-1]["ms_per_image"])
    y_ticks = axis_ticks(min(floor, *(row["top1"] for row in rows)), max(row["top1"] for row in rows))

    def place(row: dict[str, Any]) -> tuple[float, float]:
        return along(row["ms_per_image"], x_ticks, _LEFT, _RIGHT), along(row["top1"], y_ticks, _BOTTOM, _TOP)

    front = [row for i, row in enumerate(rows) if all(row["top1"] > faster["top1"] for faster in rows[:i])]
    return write_document(
        path,
        "precisions.svg",
        title=title,
        plot={"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "top": _TOP, "right": _RIGHT, "bottom": _BOTTOM},
        x_ticks=[(along(tick, x_ticks, _LEFT, _RIGHT), text) for tick, text in zip(x_ticks, tick_labels(x_ticks))],
        y_ticks=[(along(tick, y_ticks, _BOTTOM, _TOP), text) for tick, text in zip(y_ticks, tick_labels(y_ticks))],
        floor=along(floor, y_ticks, _BOTTOM, _TOP),
        front="M" + "L".join("{} {}".format(*place(row)) for row in front),
        # Names stand above and below by turns, as points may be close to each other.
        rows=[
            {**row, "place": place(row), "name_at": (-10, 19)[i % 2], "taken": row["precision"] == measured["taken"]}
            for i, row in enumerate(rows)
        ],
    )
