"""Line charts as inline SVG, drawn in the colours of style.css."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Callable

Point = tuple[float, float]

_WIDTH, _HEIGHT = 400.0, 236.0
_TOP, _RIGHT, _BOTTOM = 10.0, 14.0, 38.0
_CHARACTER = 6.8  # width of a digit of a tick's label
_MOST_POINTS = 300
_MOST_MARKERS = 20  # above that only the line is drawn; its points still tell their values


@dataclass(frozen=True)
class Series:
    """A named curve; `style` is its class in style.css: train, model or ema, or run1 and so on."""

    name: str
    style: str
    points: Sequence[Point]
    markers: bool = True  # on the points, where there are few of them


@dataclass(frozen=True)
class _Frame:
    left: float
    x_ticks: list[float]
    y_ticks: list[float]
    x_range: Point

    def at(self, x: float, y: float) -> Point:
        low, high = self.x_range
        across = (x - low) / (high - low)
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        bottom = _HEIGHT - _BOTTOM
        return self.left + across * (_WIDTH - _RIGHT - self.left), bottom - up * (bottom - _TOP)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_range: tuple[int, int],
    *,
    text: Callable[[float], str],
    show: Sequence[float] = (),
) -> str:
    """A <figure> with the curves of `series` over epochs; "" where none has a finite value.

    NaN leaves a gap. `text` writes a value for the legend and the tooltips; the vertical axis covers the values `show`.
    """
    drawn = [one for one in series if any(not math.isnan(y) for _, y in one.points)]
    if not drawn:
        return ""
    values = [y for one in drawn for _, y in one.points if not math.isnan(y)]
    y_ticks = axis_ticks(min([*values, *show]), max([*values, *show]))
    labels = tick_labels(y_ticks)
    x_step = max(1.0, _nice_step((x_range[1] - x_range[0]) / 7))
    first = math.ceil(x_range[0] / x_step)
    x_ticks = [i * x_step for i in range(first, math.floor(x_range[1] / x_step) + 1)]
    frame = _Frame(12 + _CHARACTER * max(map(len, labels)), x_ticks, y_ticks, x_range)
    curves = "".join(_curve(one, frame, text) for one in drawn)
    legend = "".join(_legend_entry(one, text) for one in drawn)
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><ul class="legend">{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(title)} over epochs">'
        f"{_axes(frame, labels)}{curves}</svg></figure>"
    )


def axis_ticks(low: float, high: float) -> list[float]:
    """At most seven round numbers in even steps of 1, 2 or 5 times a power of ten; the ends enclose `low` to `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-30:
        low, high = 0.0, 1.0
    step = _nice_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, all with the digits that their step needs."""
    place = math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)
    largest = max(abs(tick) for tick in ticks)
    if 1e-3 < largest < 1e6:
        return [f"{tick:,.{max(0, -place)}f}" for tick in ticks]
    return [_scientific(tick, place) for tick in ticks]


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """About `most` of the points: the first, the last, and the lowest and highest of each stretch between."""
    if len(points) <= most:
        return list(points)
    keep = {0, len(points) - 1}
    stretches = most // 2 - 1
    for i in range(stretches):
        stretch = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        keep.add(min(stretch, key=lambda j: points[j][1]))
        keep.add(max(stretch, key=lambda j: points[j][1]))
    return [points[j] for j in sorted(keep)]


def _nice_step(at_least: float) -> float:
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= at_least * (1 - 1e-9))


def _scientific(tick: float, place: int) -> str:
    if tick == 0:
        return "0"
    digits = max(0, math.floor(math.log10(abs(tick)) + 1e-9) - place)
    mantissa, exponent = f"{tick:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The stretches of finite points between the NaNs, thinned together; one stretch where there are very many."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if not math.isnan(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    total = sum(map(len, runs))
    if len(runs) > _MOST_POINTS // 4:
        return [thinned([point for run in runs for point in run])]
    return [thinned(run, max(4, _MOST_POINTS * len(run) // total)) for run in runs]


def _curve(series: Series, frame: _Frame, text: Callable[[float], str]) -> str:
    runs = _runs(series.points)
    total = sum(map(len, runs))
    few = series.markers and total <= _MOST_MARKERS
    kind = ' class="dense"' if total > _MOST_POINTS // 2 else ""
    lines, dots = [], []
    for run in runs:
        places = [frame.at(x, y) for x, y in run]
        if len(places) > 1:
            lines.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places))
        shown = ' class="dot"' if few or len(places) == 1 else ""
        for (px, py), (x, y) in zip(places, run):
            told = escape(f"epoch {x:.4g}: {series.name} {text(y)}")
            dots.append(f'<circle{shown} cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{told}</title></circle>')
    return f'<g class="curve {series.style}"><path{kind} d="{"".join(lines)}"/>{"".join(dots)}</g>'


def _legend_entry(series: Series, text: Callable[[float], str]) -> str:
    last = [y for _, y in series.points if not math.isnan(y)][-1]
    return (
        f'<li><svg class="key {series.style}" viewBox="0 0 22 10" aria-hidden="true"><path d="M1 5H21"/></svg>'
        f"{escape(series.name)} <b>{escape(text(last))}</b></li>"
    )


def _axes(frame: _Frame, labels: Sequence[str]) -> str:
    low, high = frame.x_range
    parts = []
    for tick, label in zip(frame.y_ticks, labels):
        (x0, y), (x1, _) = frame.at(low, tick), frame.at(high, tick)
        parts.append(f'<path class="grid" d="M{x0:.1f} {y:.1f}H{x1:.1f}"/>')
        parts.append(f'<text class="y" x="{x0 - 6:.1f}" y="{y + 4:.1f}">{label}</text>')
    bottom = _HEIGHT - _BOTTOM
    for tick in frame.x_ticks:
        x, _ = frame.at(tick, frame.y_ticks[0])
        parts.append(f'<path class="tick" d="M{x:.1f} {bottom:g}v4"/>')
        parts.append(f'<text class="x" x="{x:.1f}" y="{bottom + 17:g}">{tick:g}</text>')
    middle = (frame.left + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="x" x="{middle:.1f}" y="{_HEIGHT - 4:g}">epoch</text>')
    return "".join(parts)
