"""How fast loaders are, in time and in the CPU time of all their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Callable


def loader_rate(batches: Callable[[], Iterable], images: int) -> dict[str, float]:
    """Images per second that arrive of at least `images`, and the CPU milliseconds that one takes in all processes."""
    for _ in batches():
        pass  # workers start, files come into memory
    start, used, done = time.perf_counter(), _cpu_seconds(), 0
    while done < images:
        for _, labels in batches():
            done += len(labels)
    seconds = time.perf_counter() - start
    return {"images/s": done / seconds, "CPU ms an image": (_cpu_seconds() - used) / done * 1e3}


def _cpu_seconds() -> float:
    """What this process and its children, dead or alive, have used."""
    own = os.times()
    return sum(own[:4]) + sum(_child_seconds(entry) for entry in Path("/proc").glob("[0-9]*/stat"))


def _child_seconds(stat: Path) -> float:
    try:
        fields = stat.read_text().rsplit(")", 1)[1].split()
    except OSError:  # it has just ended
        return 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks if int(fields[1]) == os.getpid() else 0.0
