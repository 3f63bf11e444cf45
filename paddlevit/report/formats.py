"""Number formats of the pages."""

from __future__ import annotations

import time


def loss(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}" if value else "0"


def percent(value: float) -> str:
    """Two decimals; a dash for NaN."""
    return f"{value:.2f} %" if value == value else "–"


def rate(value: float) -> str:
    """A learning rate."""
    return f"{value:.3g}".replace("e-0", "e-")


def speed(value: float) -> str:
    """Images per second."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def date(seconds: float) -> str:
    """Local day and time of seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
