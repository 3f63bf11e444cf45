"""The benchmark of networks: its sums, its processes on a tiny network, its yardstick, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paddlevit.commands.benchmark import main
from paddlevit.commands.benchmark_model import summary, table
from paddlevit.commands.benchmark_profile import group_of

ROOT = Path(__file__).resolve().parents[1]


def test_summary_by_hand():
    times = {"peak": [1.0, 2.0, 1.0], "paddle": [2.0, 8.0, 4.0], "onnx": [1.0, 2.0, 4.0]}
    result = summary(times, batch_size=8, macs=2**30)
    assert result["peak_macs_per_sec"] == 2**30
    paddle, onnx = result["kinds"]["paddle"], result["kinds"]["onnx"]
    assert (paddle["seconds"], paddle["seconds_min"], paddle["seconds_max"]) == (4.0, 2.0, 8.0)
    assert paddle["images_per_sec"] == 2.0
    assert paddle["macs_per_sec"] == 2**28
    assert paddle["peak_share"] == 0.25  # 1/2, 2/8 and 1/4
    assert (paddle["speed"], onnx["speed"]) == (1.0, 2.0)  # 2/1, 8/2 and 4/4
    assert "peak" not in result["kinds"]


@pytest.mark.parametrize("flags", [["-compare", "base", "paddle", "static", "program"], ["-train"]])
def test_command_on_a_tiny_network(flags, capfd):
    assert main(["model", "-cfg", "pit_digits", "-rounds", "2", "-batch_size", "2", "-json", *flags]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["name"] == "pit_digits"
    assert list(result["kinds"]) == (flags[1:] or ["paddle"])
    assert result["macs"] > 1e6
    for row in result["kinds"].values():
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert 0 < row["peak_share"] < 1.5 and row["memory_mib"] > 10
    assert next(iter(result["kinds"].values()))["speed"] == 1.0
    for row in result["kinds"].values():
        assert f"{row['seconds']:8.4f}" in table(result)


def test_profile_of_a_tiny_network(capfd):
    assert main(["model", "-cfg", "pit_digits", "-batch_size", "2", "-train", "-profile", "-json"]) == 0
    shares = json.loads(capfd.readouterr().out)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0.0 <= share < 1.0 for share in shares.values())
    assert shares["products"] > 0.05 and shares["layout"] > 0.0 and shares["softmax"] > 0.0


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


def test_the_yardstick_computes_the_same_network():
    """In a process of its own: it changes the package."""
    code = """
import paddle
from paddlevit import build_model
from paddlevit.commands.benchmark_base import be_plain
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


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "model, data"),
        (["speed"], "speed is no benchmark"),
        (["model"], "-cfg"),
        (["model", "-cfg", "pit_digits", "-compare", "tflite"], "tflite: allowed: paddle"),
        (["model", "-cfg", "pit_digits", "-train", "-compare", "onnx"], "with -train: paddle, base, static"),
        (["model", "-cfg", "pit_digits", "-rounds", "0"], "1 or more"),
        (["model", "-cfg", "pit_digits", "-profile", "-device", "gpu"], "-profile -device gpu: allowed: cpu"),
        (
            ["model", "-cfg", "pit_digits", "-device", "gpu", "-rounds", "1"],
            "-device gpu: this PaddlePaddle is built for CPU",
        ),
        (["model", "-cfg", "pit_digits", "-device", "tpu"], "-device tpu, allowed: cpu, gpu"),
    ],
)
def test_mistakes_are_named(argv, said, capsys):
    import paddle

    if "gpu" in argv and paddle.device.is_compiled_with_cuda():
        pytest.skip("there may be one")
    assert main(argv) == 2
    assert said in capsys.readouterr().err
