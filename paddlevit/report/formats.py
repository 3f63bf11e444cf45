"""Number formats of the pages; a dash for NaN."""

from __future__ import annotations

import math
import time
from typing import Callable


def _number(text: str) -> Callable[[float], str]:
    return lambda value: "–" if math.isnan(value) else text.format(value)


loss = _number("{:.4g}")
percent = _number("{:.2f} %")
speed = _number("{:,.0f}")  # images per second


def rate(value: float) -> str:
    """A learning rate."""
    return f"{value:.3g}".replace("e-0", "e-")


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    if math.isnan(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def date(seconds: float) -> str:
    """Local day and time of seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
