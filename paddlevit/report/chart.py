"""Line charts as inline SVG: what templates/chart.html draws in the colors of style.css."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple

Point = tuple[float, float]

_BOX = {"width": 400, "height": 236, "top": 10, "right": 386, "bottom": 198}  # of the picture; edges of the plot
_CHARACTER = 6.8  # width of a digit of a tick's label
_MOST_POINTS = 300
_MOST_MARKERS = 20  # above that only the line is drawn; its points still tell their values


class Plot(NamedTuple):
    """A chart to draw, and which metric of which series it shows."""

    title: str
    text: Callable[[float], str]  # writes a value for the legend and the tooltips
    key: str = ""
    series: tuple[str, ...] = ()
    show: tuple[float, ...] = ()  # values that the vertical axis covers
    scale: float = 1.0


class Series(NamedTuple):
    """A named curve; `style` is its class in style.css: train, model or ema, or run1 and so on."""

    name: str
    style: str
    points: Sequence[Point]
    markers: bool = True  # on the points, where there are few of them


def line_chart(plot: Plot, series: Sequence[Series], x_range: tuple[int, int]) -> dict[str, Any] | None:
    """What templates/chart.html draws of `series` over epochs, NaN leaving a gap; None where no value is finite.

    Places are SVG units, from the top left.
    """
    drawn = [one for one in series if any(not math.isnan(y) for _, y in one.points)]
    if not drawn:
        return None
    values = [y for one in drawn for _, y in one.points if not math.isnan(y)]
    y_ticks = axis_ticks(min([*values, *plot.show]), max([*values, *plot.show]))
    labels = tick_labels(y_ticks)
    x_step = max(1.0, _nice_step((x_range[1] - x_range[0]) / 7))
    x_ticks = [i * x_step for i in range(math.ceil(x_range[0] / x_step), math.floor(x_range[1] / x_step) + 1)]
    left = round(12 + _CHARACTER * max(map(len, labels)), 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return along(x, x_range, left, _BOX["right"]), along(y, y_ticks, _BOX["bottom"], _BOX["top"])

    return {
        "title": plot.title,
        "x_name": "epoch",
        "box": {**_BOX, "left": left},
        "y_ticks": [(place(0, tick)[1], label) for tick, label in zip(y_ticks, labels)],
        "x_ticks": [(place(tick, 0)[0], f"{tick:g}") for tick in x_ticks],
        "curves": [_curve(one, place, plot.text) for one in drawn],
    }


def line_charts(
    plots: Sequence[Plot], series: Callable[[Plot], Sequence[Series]], x_range: tuple[int, int]
) -> list[dict[str, Any]]:
    """The charts of those `plots` whose `series` have a finite value."""
    charts = [line_chart(plot, series(plot), x_range) for plot in plots]
    return [chart for chart in charts if chart is not None]


def along(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    """The position of a value on an axis from the first tick, at `start`, to the last, at `end`."""
    return round(start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start), 1)


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


def _curve(
    series: Series, place: Callable[[float, float], tuple[float, float]], text: Callable[[float], str]
) -> dict[str, Any]:
    """A series as it is drawn, thinned and with gaps for the NaNs, and its last value for the legend."""
    gaps = [x for x, y in series.points if math.isnan(y)]
    finite = thinned([point for point in series.points if not math.isnan(point[1])])
    runs = [list(run) for _, run in itertools.groupby(finite, lambda point: bisect.bisect(gaps, point[0]))]
    few = series.markers and sum(map(len, runs)) <= _MOST_MARKERS
    dots = [
        {"at": place(x, y), "shown": few or len(run) == 1, "epoch": f"{x:.4g}", "value": text(y)}
        for run in runs
        for x, y in run
    ]
    return {
        "name": series.name,
        "style": series.style,
        "last": text(finite[-1][1]),
        "path": "".join(line_path(place(x, y) for x, y in run) for run in runs if len(run) > 1),
        "dense": len(dots) > _MOST_POINTS // 2,
        "dots": dots,
    }


def line_path(places: Iterable[Point]) -> str:
    """The SVG path from place to place."""
    return "M" + "L".join(f"{x} {y}" for x, y in places)
