"""benchmark.py data: it runs on made-up and on given images, and says what the yardstick is."""

from __future__ import annotations

import io
import json
import logging
import sys

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit.commands import yardstick
from paddlevit.commands.benchmark_data import data_command
from paddlevit.commands.photographs import write_photographs

STAGES = {
    "read",
    "decode by Pillow",
    "decode for training",
    "crop, flip",
    "training",
    "evaluation",
    "collate",
    "transfer, normalise",
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, 3)
    return folder


def test_photographs_cost_what_imagenets_do(photographs):
    files = sorted(photographs.rglob("*.jpg"))
    assert len(files) == 6
    for file in files:
        assert 80_000 < file.stat().st_size < 140_000
        with Image.open(file) as image:
            assert sorted(image.size) == [375, 500]


def test_every_stage_is_measured(capsys, monkeypatch, caplog):
    package = logging.getLogger("paddlevit")
    monkeypatch.setattr(package, "propagate", True)
    caplog.set_level(logging.INFO, package.name)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert data_command(["-images", "2", "-rounds", "1", "-json", "-opts", "DATA.IMAGE_SIZE", "64"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert "in training by" in result["description"] and not caplog.records and package.level == logging.INFO
    assert "photographs: 100%" in err and "normalise, erase: 100%" in err
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() >= STAGES and all(row["milliseconds"] >= 0 for row in rows.values())
    for name in ("crop, flip", "training", "evaluation"):
        against = f"yardstick: {name}"
        assert rows[name]["against"] == against
        # One round, so that the median of the ratios is the ratio of the medians.
        assert rows[name]["ratio"] == pytest.approx(rows[against]["milliseconds"] / rows[name]["milliseconds"])


def test_the_table_and_the_loaders(photographs, capsys):
    argv = ["-images", "4", "-rounds", "2", "-workers", "0", "1", "-data_path", str(photographs)]
    assert data_command([*argv, "-opts", "DATA.IMAGE_SIZE", "64", "TRAIN.RESIZER", "pillow"]) == 0
    out = capsys.readouterr().out
    assert "x yardstick" in out and "of what decoding alone allows" in out and "for training" not in out
    assert "yardstick: training" in out.split("loaders with 1")[1] and out.count("CPU ms an image") == 8
    assert ", by Pillow" in out


@pytest.mark.parametrize("argv", [["-images", "0"], ["-rounds", "0"], ["-data_path", "nowhere"], ["-what"]])
def test_mistakes(argv, capsys):
    assert data_command(argv) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_yardstick_gives_normalised_images(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(_png(pixels)))
    evaluated = yardstick.evaluation_chain(32, 0.875)(image)
    assert evaluated.shape == [3, 32, 32] and evaluated.dtype == paddle.float32
    assert abs(evaluated.mean().item()) < 1.0
    monkeypatch.setattr(yardstick.random, "random", lambda: 0.0)
    monkeypatch.setattr(yardstick.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(yardstick.random, "randint", lambda low, high: low)
    black = paddle.full([3, 32, 32], -5.0)
    erased = yardstick._erase(black) != -5.0
    assert 0.2 < erased.astype("float32").mean().item() < 0.4 and erased[:, 0, 0].all()
    assert yardstick.training_chain(32, full=True)(image).shape == [3, 32, 32]


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
