"""Number formats of the pages; a dash for NaN."""

from __future__ import annotations

import math
import time
from typing import Callable

from tqdm import tqdm


def _number(text: str) -> Callable[[float], str]:
    return lambda value: "–" if math.isnan(value) else text.format(value)


loss = _number("{:.4g}")
percent = _number("{:.2f} %")
rate = _number("{:.3g}")
speed = _number("{:,.0f}")  # images per second


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as the log has them."""
    return "–" if math.isnan(seconds) else tqdm.format_interval(round(seconds))


def date(seconds: float) -> str:
    """Local day and time of seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
