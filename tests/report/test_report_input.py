"""The page of a run survives whatever stands in the run's folder."""

from __future__ import annotations

import json
import math
import os
import re

import pytest
from run_pages import CLOSING, LINES, report, run_folder, train, val

from paddlevit.errors import MissingFileError, UserError
from paddlevit.report.page import write_report

BROKEN = [
    *(json.dumps({**train(1), "steps_per_epoch": steps}) + "\n" for steps in (None, 0, 10**400)),
    json.dumps(train(1))[:-9],
    json.dumps(train(1))[:-9] + "\n",
    "\x00\xff binary\n",
    "[1, 2]\n",
    "null\n",
    '{"phase": "train"}\n',
    '{"phase": "test", "epoch": 1}\n',
    '{"phase": "val", "epoch": NaN}\n',
    '{"phase": "val", "epoch": "three"}\n',
    "[" * 100_000 + "\n",
]


@pytest.mark.parametrize("line", BROKEN)
def test_broken_line_is_left_out_and_told(tmp_path, line):
    page = report(tmp_path, [*LINES, line])
    assert "Damaged lines of metrics.jsonl, left out: 1." in page.text
    assert page.headline["best top-1"][0] == "98.12 %"


def test_blank_lines_are_no_broken_lines(tmp_path):
    assert "left out" not in report(tmp_path, ["\n", *LINES, "\n", "  \n"]).text


ODD = [math.nan, math.inf, -math.inf, None, "0.5", True, [1.0], 10**400, 1e300, -1e300]


@pytest.mark.parametrize("odd", ODD, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("key", ["loss", "lr", "images_per_sec", "data_wait", "step", "steps_per_epoch"])
def test_odd_training_value_leaves_a_gap(tmp_path, key, odd):
    page = report(tmp_path, [train(1), train(2, **{key: odd}), train(3), val(3, 50.0)])
    assert "nan" not in page.source.lower() and "inf " not in page.text
    assert len([t for t in page.titles if t.startswith("epoch 1: ")]) == 4
    assert len([t for t in page.titles if t.startswith("epoch 3: ")]) == 7
    if not key.startswith("step"):
        assert len([t for t in page.titles if t.startswith("epoch 2: ")]) == 3
    assert page.headline["training loss"][0] == "1.5"


def test_gap_breaks_the_line(tmp_path):
    page = report(tmp_path, [train(epoch, loss=math.nan if epoch == 3 else epoch) for epoch in range(1, 7)])
    path = re.search(r'<g class="curve train"><path d="([^"]*)"', page.source).group(1)
    assert [len(part.split("L")) for part in path.split("M")[1:]] == [2, 3]


def test_all_values_odd(tmp_path):
    line = {"phase": "val", "epoch": 1, "weights": None, "loss": None, "acc1": math.nan, "acc5": "x"}
    page = report(tmp_path, [line, {"phase": "train", "epoch": 1}])
    assert page.headline == {} and page.titles == []


@pytest.mark.parametrize("line", [train(1), train(1, step=1), val(1, 50.0), val(7, 50.0, "ema"), CLOSING, train(0, 0)])
def test_a_single_line_is_enough(tmp_path, line):
    page = report(tmp_path, [line])
    assert page.headline


def test_last_line_of_a_repeated_epoch_wins(tmp_path):
    lines = [train(1), val(1, 10.0), train(2), val(2, 20.0), val(2, 21.0, "ema"), train(3), val(3, 99.0)]
    page = report(tmp_path, [*lines, train(2, 5, loss=7.0), train(2, loss=6.0), val(2, 40.0), val(2, 41.0, "ema")])
    accuracy = [t for t in page.titles if "%" in t and "99.50" not in t and "training" not in t]
    assert accuracy == [
        "epoch 1: validation 10.00 %",
        "epoch 2: validation 40.00 %",
        "epoch 2: validation, EMA 41.00 %",
    ]
    losses = [t for t in page.titles if re.search(r": training \d\.?\d*$", t) and "0.001" not in t]
    assert losses == ["epoch 1: training 1.5", "epoch 1.5: training 7", "epoch 2: training 6"]
    assert page.headline["best top-1"] == ["41.00 %", "EMA weights, epoch 2"]


def test_validation_line_repeated_alone(tmp_path):
    page = report(tmp_path, [val(1, 10.0), val(1, 30.0, "ema"), val(1, 20.0)])
    assert "epoch 1: validation 20.00 %" in page.titles and "epoch 1: validation, EMA 30.00 %" in page.titles
    assert not any("10.00" in title for title in page.titles)


def test_run_that_goes_on_after_its_closing_line(tmp_path):
    page = report(tmp_path, [train(1), val(1, 50.0), val(1, 50.5, best=True), train(2, step=5)])
    assert "not finished: its last line is from epoch 2 of 3." in page.text
    assert page.headline["best top-1"] == ["50.00 %", "model weights, epoch 1"]


@pytest.mark.parametrize("text", [None, "", "\n\n", "{broken", "[]\n"])
def test_metrics_without_figures_are_a_users_mistake(tmp_path, text):
    run_folder(tmp_path, LINES)
    (tmp_path / "metrics.jsonl").unlink()
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "metrics.jsonl"))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_config_must_be_there_and_be_yaml(tmp_path):
    path = run_folder(tmp_path, LINES) / "config.yaml"
    for text in ("a: [1", "- 1\n", "", "a: 2026-13-01\n", "[" * 10_000):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(str(path))):
            write_report(tmp_path)
    path.unlink()
    with pytest.raises(MissingFileError, match=re.escape(str(path))):
        write_report(tmp_path)


def test_config_without_the_usual_keys(tmp_path):
    page = report(tmp_path, LINES, config={"MODEL": 3, "DATA": None})
    assert tmp_path.name in page.text


def test_full_disk_leaves_the_earlier_report(tmp_path, monkeypatch):
    report(tmp_path, LINES)
    before = (tmp_path / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="report.html: No space left"):
        report(tmp_path, [*LINES, CLOSING])
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html"]
