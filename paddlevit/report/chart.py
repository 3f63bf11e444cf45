"""Line charts as inline SVG: what templates/chart.html draws in the colors of style.css."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Callable, NamedTuple

Point = tuple[float, float]

_WIDTH, _HEIGHT = 400, 236
_TOP, _RIGHT, _BOTTOM = 10, 386, 198  # edges of the plot
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


class Dot(NamedTuple):
    """A point of a curve and its tooltip."""

    x: float
    y: float
    shown: bool
    epoch: str
    value: str


class Curve(NamedTuple):
    """A series as it is drawn; `last` is its last value, for the legend."""

    name: str
    style: str
    last: str
    path: str
    dense: bool
    dots: list[Dot]


class Chart(NamedTuple):
    """Positions are SVG units, from the top left."""

    title: str
    left: float
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    curves: list[Curve]
    right: float = _RIGHT
    bottom: float = _BOTTOM
    width: float = _WIDTH
    height: float = _HEIGHT
    x_name: str = "epoch"


def line_chart(plot: Plot, series: Sequence[Series], x_range: tuple[int, int]) -> Chart | None:
    """The curves of `series` over epochs, NaN leaving a gap; None where no value is finite."""
    drawn = [one for one in series if any(not math.isnan(y) for _, y in one.points)]
    if not drawn:
        return None
    values = [y for one in drawn for _, y in one.points if not math.isnan(y)]
    y_ticks = axis_ticks(min([*values, *plot.show]), max([*values, *plot.show]))
    labels = tick_labels(y_ticks)
    x_step = max(1.0, _nice_step((x_range[1] - x_range[0]) / 7))
    x_ticks = [i * x_step for i in range(math.ceil(x_range[0] / x_step), math.floor(x_range[1] / x_step) + 1)]
    left = round(12 + _CHARACTER * max(map(len, labels)), 1)

    def x_of(epoch: float) -> float:
        return along(epoch, x_range, left, _RIGHT)

    def y_of(value: float) -> float:
        return along(value, y_ticks, _BOTTOM, _TOP)

    return Chart(
        plot.title,
        left,
        [(y_of(tick), label) for tick, label in zip(y_ticks, labels)],
        [(x_of(tick), f"{tick:g}") for tick in x_ticks],
        [_curve(one, x_of, y_of, plot.text) for one in drawn],
    )


def line_charts(
    plots: Sequence[Plot], series: Callable[[Plot], Sequence[Series]], x_range: tuple[int, int]
) -> list[Chart]:
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


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The finite points, thinned, by the stretches between the NaNs."""
    gaps = [x for x, y in points if math.isnan(y)]
    finite = thinned([point for point in points if not math.isnan(point[1])])
    return [list(run) for _, run in itertools.groupby(finite, lambda point: bisect.bisect(gaps, point[0]))]


def _curve(
    series: Series, x_of: Callable[[float], float], y_of: Callable[[float], float], text: Callable[[float], str]
) -> Curve:
    runs = _runs(series.points)
    total = sum(map(len, runs))
    few = series.markers and total <= _MOST_MARKERS
    path, dots = "", []
    for run in runs:
        if len(run) > 1:
            path += "M" + "L".join(f"{x_of(x)} {y_of(y)}" for x, y in run)
        shown = few or len(run) == 1
        dots += [Dot(x_of(x), y_of(y), shown, f"{x:.4g}", text(y)) for x, y in run]
    last = [y for _, y in series.points if not math.isnan(y)][-1]
    return Curve(series.name, series.style, text(last), path, total > _MOST_POINTS // 2, dots)
