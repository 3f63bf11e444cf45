"""Axes, thinning and escaping of the report's charts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_pages import Page

from paddlevit.report.chart import Plot, Series, axis_ticks, line_chart, thinned, tick_labels
from paddlevit.report.document import TEMPLATES

FIGURES = st.floats(-1e29, 1e29, allow_nan=False) | st.floats(-2, 2)


@given(FIGURES, FIGURES)
@settings(max_examples=300)
def test_axis_encloses_its_values_in_round_steps(one, other):
    low, high = min(one, other), max(one, other)
    ticks = axis_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 8
    assert ticks[0] - 1e-6 * step <= low and high <= ticks[-1] + 1e-6 * step
    assert f"{step:.5e}"[:7] in ("1.00000", "2.00000", "5.00000")
    assert len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (97.2, 99.1, ["97.0", "97.5", "98.0", "98.5", "99.0", "99.5"]),
        (0.0, 5e-4, ["0", "1e-4", "2e-4", "3e-4", "4e-4", "5e-4"]),
        (0.0, 1.1e-4, ["0", "5e-5", "1.0e-4", "1.5e-4"]),
        (0.0, 12_000, ["0", "5,000", "10,000", "15,000"]),
        (100.0, 100.0, ["0", "20", "40", "60", "80", "100"]),
        (0.0, 0.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_tick_labels(low, high, labels):
    assert tick_labels(axis_ticks(low, high)) == labels


@given(st.integers(1, 2000), st.integers(0, 10**6))
@settings(max_examples=60)
def test_thinning_keeps_ends_and_extremes(size, seed):
    values = np.random.default_rng(seed).normal(size=size).tolist()
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thinned(points, most=100)
    assert len(kept) <= 102 and kept == sorted(set(kept)) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {min(values), max(values)} <= {y for _, y in kept}


def test_very_many_gaps_do_not_make_a_large_page():
    points = [(float(i), math.nan if i % 2 else 1.0 + i) for i in range(10_000)]
    chart = line_chart(Plot("Loss", str), [Series("training", "train", points)], (0, 10_000))
    assert 250 < len(chart["curves"][0]["dots"]) <= 302


def test_chart_escapes_its_names():
    chart = line_chart(Plot("<i>", lambda value: f"<u>{value}"), [Series("<b>&", "train", [(0.0, 1.0)])], (0, 1))
    page = Page(TEMPLATES.get_template("chart.html").module.charts([chart], "<s>"))
    assert page.titles == ["epoch 0: <b>& <u>1.0"]
    assert not {"i", "u", "s"} & {tag for tag, _, _ in page.tags}
    assert line_chart(Plot("none", str), [Series("a", "train", [(0.0, math.nan)])], (0, 1)) is None
