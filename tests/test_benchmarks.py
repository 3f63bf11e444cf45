"""benchmarks/: its sums, its processes on a tiny model, its baselines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from benchmarks import data, models, paddle_vision, pictures, scale
from benchmarks.operators import group_of
from paddlevit.config import get_config

ROOT = Path(__file__).resolve().parents[1]


def test_summary_by_hand():
    times = {"peak": [1.0, 2.0, 1.0], "paddle": [2.0, 8.0, 4.0], "onnx": [1.0, 2.0, 4.0]}
    result = models.summary(times, {"batch_size": 8}, 2**30)
    assert result["peak_macs_per_sec"] == 2**30
    paddle, onnx = result["kinds"]["paddle"], result["kinds"]["onnx"]
    assert (paddle["seconds"], paddle["seconds_min"], paddle["seconds_max"]) == (4.0, 2.0, 8.0)
    assert paddle["images_per_sec"] == 2.0
    assert paddle["macs_per_sec"] == 2**28
    assert paddle["peak_share"] == 0.25  # 1/2, 2/8 and 1/4
    assert (paddle["speed"], onnx["speed"]) == (1.0, 2.0)  # 2/1, 8/2 and 4/4
    assert "peak" not in result["kinds"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["-compare", "base", "compiled", "program"], ["-train"]])
def test_a_tiny_model(flags, capfd):
    assert models.main(["-cfg", "pit_digits", "-rounds", "2", "-batch_size", "2", "-json", *flags]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["name"] == "pit_digits"
    assert list(result["kinds"]) == (flags[1:] or ["paddle"])
    for row in result["kinds"].values():
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert 0 < row["peak_share"] < 1.5 and row["memory_mib"] > 10
        assert f"{row['seconds']:8.4f}" in models.table(result)
    assert next(iter(result["kinds"].values()))["speed"] == 1.0


@pytest.mark.slow
def test_profile_of_a_tiny_model(capfd):
    assert models.main(["-cfg", "pit_digits", "-batch_size", "2", "-train", "-profile", "-json"]) == 0
    shares = json.loads(capfd.readouterr().out)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0.0 <= share < 1.0 for share in shares.values())
    assert shares["products"] > 0.0 and shares["layout"] > 0.0 and shares["softmax"] > 0.0


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("matmul_grad", "products"),
        ("depthwise_conv2d", "products"),
        ("softmax", "softmax"),
        ("layer_norm_grad", "norms"),
        ("transpose_grad", "layout"),
        ("multiply_", "elementwise"),
    ],
)
def test_groups_of_operators(operator, group):
    assert group_of(operator) == group


@pytest.mark.slow
def test_the_baseline_computes_the_same_model():
    """In a process of its own: it changes the package."""
    code = """
import paddle
from benchmarks.plain import be_plain
from paddlevit import build_model
from paddlevit.config import get_config
x = paddle.randn([2, 3, 32, 32])
model = build_model(get_config("pit_digits"))
model.eval()
with paddle.no_grad():
    ours = model(x)
    be_plain()
    plain = model(x)
assert abs(ours - plain).max().item() < 1e-5
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_data(capsys):
    argv = ["-images", "2", "-rounds", "1", "-workers", "1", "-json", "-opts", "DATA.IMAGE_SIZE", "64"]
    assert data.main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    for name in paddle_vision.NAMES:
        times = result["stages"][f"PaddleViT: {name}"]["cpu_ms"] / result["stages"][name]["cpu_ms"]
        assert result["stages"][name]["times_as_fast"] == pytest.approx(times)  # of one round
    assert len(result["loaders"]) == 5 and all(rate["images/s"] > 0 for rate in result["loaders"].values())
    assert "x PaddleViT's" in data.table(result["stages"], result["loaders"])


def test_the_baseline_gives_normalized_images(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = Image.open(file)
    evaluated = paddle_vision.evaluation_chain(32, 0.875)(image)
    assert evaluated.shape == [3, 32, 32] and evaluated.dtype == paddle.float32
    assert abs(evaluated.mean().item()) < 1.0
    monkeypatch.setattr(paddle_vision.random, "random", lambda: 0.0)
    monkeypatch.setattr(paddle_vision.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(paddle_vision.random, "randint", lambda low, high: low)
    black = paddle.full([3, 32, 32], -5.0)
    erased = paddle_vision._erase(black) != -5.0
    assert 0.2 < erased.astype("float32").mean().item() < 0.4 and erased[:, 0, 0].all()
    assert paddle_vision.training_chain(32, full=True)(image).shape == [3, 32, 32]


@pytest.mark.parametrize("main", [models.main, data.main])
def test_mistakes_are_named(main, capsys):
    assert main(["-cfg", "pit_digits", "-compare", "tflite"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_cost_of_scale():
    args = scale.parse_args(["-rate", "100", "-batch_size", "50", "-cores", "2", "-decode", "40", "-storage", "0"])
    one, ring = scale.row(args, 10**6, 1), scale.row(args, 10**6, 16)
    assert one["limit"] == "decoding" and one["images_per_sec"] == pytest.approx(80)
    assert one["exchanged_bytes_per_step"] == 0
    # A ring by hand: 15 messages of a sixteenth of the gradients to sum them up, 15 to hand the sums round.
    assert ring["exchanged_bytes_per_step"] == pytest.approx(30 * 4 * 10**6 / 16)
    assert ring["exchange_seconds"] == pytest.approx(7.5e6 / 3.1e9)


def test_what_a_forward_pass_keeps():
    """Of two linear layers on [N, 4]: both inputs and both weights."""
    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 4))
    config = get_config(opts=["DATA.IMAGE_CHANNELS", 1, "DATA.IMAGE_SIZE", 2])
    assert scale.saved_bytes(model, config, 3) - scale.saved_bytes(model, config, 1) == 2 * 2 * 4 * 4


def test_few_pictures_are_cut_apart_and_always_the_same(tmp_path, monkeypatch, capsys):
    names = [*pictures.MANY, *pictures.FEW.values()]
    monkeypatch.setattr(pictures, "photographs", lambda: {name: Image.new("RGB", (360, 90), "teal") for name in names})
    where = {}
    monkeypatch.setattr(
        pictures, "write_cut", lambda image, box, rng, file: where.update({str(file): (box, rng.rand())})
    )
    assert pictures.main([str(tmp_path / "0")]) == 0
    first = dict(where)
    assert pictures.main([str(tmp_path / "1"), "-seed", "1", "-images", "3"]) == 0
    assert "1904 cuts to train on and 272 to validate" in capsys.readouterr().out
    boxes = [{where[file][0] for file in where if f"/few/{split}/" in file} for split in ("train", "val")]
    assert len(boxes[0]) == 4
    assert not boxes[0] & boxes[1]
    seeds = {
        split: [where[str(tmp_path / seed / "few" / split / "cat" / "00.jpg")] for seed in "01"]
        for split in ("train", "val")
    }
    assert seeds["val"][0] == seeds["val"][1]
    assert seeds["train"][0] != seeds["train"][1]
    assert len(first) == 68 * 32 + 5 * 65
    assert pictures.main([str(tmp_path)]) == 2
