"""What is not a CPU: whole runs on a plug-in device, whose operators are the CPU's. Nothing here is about speed.

The plug-in is compiled from fake_device.cc and half_kernels.cc against the headers that Paddle's wheel brings. Paddle
switches bfloat16 off on such devices.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from tiny import image_folder

from paddlevit.commands.check import VARIANTS
from paddlevit.commands.train import main
from paddlevit.weights import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++") or shutil.which("clang++")
EVERYTHING = ["TRAIN.ACCUM_ITER", 2, "TRAIN.GRAD_CLIP", 1.0, "TRAIN.RANDOM_ERASE_PROB", 0.5, "TRAIN.MODEL_EMA", "true"]
EVERYTHING += ["TRAIN.MIXUP_ALPHA", 0.8, "TRAIN.CUTMIX_ALPHA", 1.0, "TRAIN.MODEL_EMA_WARMUP", "false"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to build the device with")]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The folder that CUSTOM_DEVICE_ROOT names."""
    folder, installed = tmp_path_factory.mktemp("plugin"), Path(paddle.__file__).parent
    include = ["-I", installed / "include", "-I", installed / "include" / "third_party"]
    sources = [Path(__file__).with_name(name) for name in ("fake_device.cc", "half_kernels.cc")]
    libraries = [installed / name for name in ("base/libpaddle.so", "libs/libphi_core.so", "libs/libcommon.so")]
    command = [COMPILER, "-std=c++17", "-fPIC", "-shared", "-w", *include, *sources, *libraries]
    subprocess.run([*map(str, command), "-o", str(folder / "libfake.so")], check=True)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), classes=2, train=16, val=10)


def flags(variant, data, output, opts):
    always = ["TRAIN.NUM_EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.BASE_LR", 1e-4, "REPORT_FREQ", 1]
    args = ["-cfg", variant, "-data_path", data, "-output", output, "-batch_size", 8, "-num_workers", 1]
    return [str(word) for word in (*args, "-opts", *always, *opts)]


def on_the_device(plugin, tool, *args):
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, args), "-device", "custom:FakeCPU"]
    env = {**os.environ, "CUSTOM_DEVICE_ROOT": str(plugin), "GLOG_minloglevel": "2"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.mark.parametrize(
    ("variant", "opts"),
    [
        ("pit_digits", []),
        # Paddle restores the generator of the device before it computes a block again; here the CPU's draws.
        ("hvt_digits", ["TRAIN.RECOMPUTE", "true", "MODEL.DROPPATH", 0.0]),
        ("cvt_digits", []),
        ("hrformer_digits", []),
        ("regnet_digits", []),
        ("pit_distilled_digits", ["TRAIN.DISTILLATION_TYPE", "none"]),
    ],
)
def test_a_run_on_another_device_is_that_on_a_cpu(plugin, data, tmp_path, variant, opts):
    opts = [*EVERYTHING, *opts]
    out = on_the_device(plugin, "main_single_gpu.py", *flags(variant, data, tmp_path / "other", opts))
    assert "on FakeCPU:0" in out
    assert main(flags(variant, data, tmp_path / "cpu", opts), nprocs=1) == 0
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-4)
    for name in ("epoch_002.pdparams", "epoch_002_ema.pdparams"):
        ours, theirs = (read_state_dict(tmp_path / each / name) for each in ("other", "cpu"))
        for key, value in theirs.items():
            assert np.abs(ours[key] - value).max() <= 2e-4, key  # of weights that AdamW moves by 1e-4 in a step


def test_resumed_evaluated_predicted_explained_and_exported(plugin, data, tmp_path):
    args = [*flags("pit_digits", data, tmp_path / "run", EVERYTHING), "-amp"]
    on_the_device(plugin, "main_single_gpu.py", *args)
    (tmp_path / "half").mkdir()
    for path in (tmp_path / "run").glob("epoch_001*"):
        shutil.copy(path, tmp_path / "half")
    args = [*flags("pit_digits", data, tmp_path / "half", EVERYTHING), "-amp"]
    on_the_device(plugin, "main_single_gpu.py", *args, "-resume", "auto")
    saved = [(tmp_path / name / "epoch_002.pdparams").read_bytes() for name in ("run", "half")]
    assert saved[0] == saved[1]

    best, image = tmp_path / "run" / "best.pdparams", data / "val" / "0" / "0.png"
    words = ["-cfg", "pit_digits", "-data_path", data, "-eval", "-amp", "-pretrained", best]
    on_the_device(plugin, "main_single_gpu.py", *words, "-output", tmp_path / "eval")
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["num_images"] == 10
    assert json.loads(on_the_device(plugin, "predict.py", "-pretrained", best, image, "-json"))["classes"]
    on_the_device(plugin, "visualize_attention.py", "-pretrained", best, "-image", image, "-output", tmp_path / "h.png")
    assert (tmp_path / "h.png").is_file()
    exported = ["-pretrained", best, "-format", "paddle", "-output", tmp_path / "exported"]
    assert "largest difference" in on_the_device(plugin, "export_model.py", *exported)


@pytest.mark.parametrize(
    ("variant", "level", "steps", "skipped"),
    [
        ("pit_digits", "O1", 60, 1),
        ("pit_digits", "O2", 8, 1),
        ("hvt_digits", "O1", 4, 0),
        ("hvt_digits", "O2", 4, 0),
        ("cvt_digits", "O1", 4, 0),
        ("hrformer_digits", "O1", 4, 2),
        ("regnet_digits", "O1", 4, 0),
    ],
)
def test_half_precision(plugin, variant, level, steps, skipped):
    """Float32 but for rounding, also where a gradient overflows; resumed in the middle, it is the undisturbed run."""
    command = [sys.executable, Path(__file__).with_name("half_steps.py"), variant, level, str(steps)]
    env = {**os.environ, "CUSTOM_DEVICE_ROOT": str(plugin), "GLOG_minloglevel": "2", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    half, full = found["losses"]
    same = None if skipped == 0 else 1  # from the first overflow on, the other run is a step ahead
    assert half[:same] == pytest.approx(full[:same], rel=2e-3)
    if steps > 50:
        assert np.mean(half[-20:]) == pytest.approx(np.mean(full[-20:]), abs=0.1) and np.mean(full[-20:]) < 0.5
    assert found["skipped"] == skipped and found["scale"] == 2.0 ** (16 - skipped)
    assert found["differences"] == [0.0, 0.0], "of weights and their EMA, to the run that was resumed"
    assert found["ema"] == ["paddle.float32"]
    assert ("paddle.float16" in found["weights"]) == (level == "O2")
    if level == "O1":
        check_operators(variant, found["operators"])


# What Paddle's O1 computes in float16 beside casts. An operator that is in neither of its lists does so where all its
# inputs are in float16: not after a bias or a LayerNorm, and no depthwise convolution, whose weights are in float32.
IN_HALF = {
    "pit_digits": {"conv2d", "matmul_v2", "elementwise_add", "reshape", "transpose2"},
    "hvt_digits": {"conv2d", "matmul_v2", "elementwise_add", "reshape", "transpose2", "flatten_contiguous_range"},
    "cvt_digits": {"conv2d", "matmul_v2", "elementwise_add", "reshape", "transpose2", "flatten_contiguous_range"},
    "hrformer_digits": {
        "conv2d",
        "matmul_v2",
        "elementwise_add",
        "reshape",
        "transpose2",
        "batch_norm",
        "relu",
        "gelu",
    },
    "regnet_digits": {
        "conv2d",
        "matmul_v2",
        "elementwise_add",
        "flatten_contiguous_range",
        "batch_norm",
        "relu",
        "pool2d",
    },
}


def check_operators(variant, calls):
    half = {name for name, (in_half, _) in calls.items() if in_half}
    assert half - {"cast"} == IN_HALF[variant]
    for dtype in ("float16", "bfloat16"):  # what Paddle's lists say of these operators is the same for both
        lists = [each[dtype]["O1"] & calls.keys() for each in (paddle.amp.white_list(), paddle.amp.black_list())]
        assert lists[0] == {"conv2d", "matmul_v2"} and not lists[1] & half
        assert all(calls[name][1] == 0 for name in lists[0]), "every product is in half precision"
        assert {"softmax", "layer_norm", "log_softmax"} & calls.keys() <= lists[1]


def test_check_passes_but_for_bfloat16(plugin):
    command = [sys.executable, "-m", "paddlevit", "check", "-device", "custom:FakeCPU", "-json", "-batch_size", "1"]
    env = {**os.environ, "CUSTOM_DEVICE_ROOT": str(plugin), "GLOG_minloglevel": "2"}
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = {row["check"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert result.returncode == 0 and rows["device"]["result"] == "FakeCPU:0", result.stdout + result.stderr
    for variant in VARIANTS:
        assert all(rows[f"{variant}, {precision}"]["ok"] for precision in ("f32", "O1 float16", "O2 float16"))
    assert rows["O1 bfloat16"]["result"].startswith("n/a: -amp_dtype bfloat16: Paddle has it on GPUs only")
    assert rows["pit_digits, resumed"]["ok"]
    assert rows["pit_digits, 100 steps"]["result"].endswith(" 1 skipped as they were not finite")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("custom:Other", "there is no such plug-in; found: custom:FakeCPU"),
        ("tpu", "-device must be auto, gpu, cpu or custom:NAME, got 'tpu'"),
    ],
)
def test_devices_that_there_are_not(plugin, data, tmp_path, device, said):
    command = [sys.executable, ROOT / "tools" / "main_single_gpu.py", *flags("pit_digits", data, tmp_path / "r", [])]
    env = {**os.environ, "CUSTOM_DEVICE_ROOT": str(plugin)}
    result = subprocess.run(
        [*map(str, command), "-device", device], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and said in result.stderr
