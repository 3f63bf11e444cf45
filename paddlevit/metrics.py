"""metrics.jsonl, in which a run notes what it does: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_COUNTS = {"train": ("epoch", "step", "steps_per_epoch"), "val": ("epoch",)}  # what a line of each phase must have


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics.jsonl, and how many are damaged and left out, such as the last one of a killed run.

    Raises OSError.
    """
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    records = [record for record in map(_record, lines) if record is not None]
    return records, len(lines) - len(records)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8"))
        counts = [record[key] for key in _COUNTS[record["phase"]]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    counted = all(type(count) is int and 0 <= count < 1e9 for count in counts)
    return record if counted and record.get("steps_per_epoch") != 0 else None
