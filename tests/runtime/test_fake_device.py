"""What is not a CPU: whole runs on a plug-in device, whose operators are the CPU's. Nothing here is about speed or AMP.

The plug-in is compiled from fake_device.cc against the headers that Paddle's wheel brings.
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
    folder, headers = tmp_path_factory.mktemp("plugin"), Path(paddle.__file__).parent / "include"
    include = ["-I", headers, "-I", headers / "third_party"]
    source = Path(__file__).with_name("fake_device.cc")
    command = [COMPILER, "-std=c++17", "-fPIC", "-shared", "-w", *include, source, "-o", folder / "libfake.so"]
    subprocess.run(list(map(str, command)), check=True)
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
    args = flags("pit_digits", data, tmp_path / "run", EVERYTHING)
    on_the_device(plugin, "main_single_gpu.py", *args)
    (tmp_path / "half").mkdir()
    for path in (tmp_path / "run").glob("epoch_001*"):
        shutil.copy(path, tmp_path / "half")
    args = flags("pit_digits", data, tmp_path / "half", EVERYTHING)
    on_the_device(plugin, "main_single_gpu.py", *args, "-resume", "auto")
    saved = [(tmp_path / name / "epoch_002.pdparams").read_bytes() for name in ("run", "half")]
    assert saved[0] == saved[1]

    best, image = tmp_path / "run" / "best.pdparams", data / "val" / "0" / "0.png"
    words = ["-cfg", "pit_digits", "-data_path", data, "-eval", "-pretrained", best, "-output", tmp_path / "eval"]
    on_the_device(plugin, "main_single_gpu.py", *words)
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["num_images"] == 10
    assert json.loads(on_the_device(plugin, "predict.py", "-pretrained", best, image, "-json"))["classes"]
    on_the_device(plugin, "visualize_attention.py", "-pretrained", best, "-image", image, "-output", tmp_path / "h.png")
    assert (tmp_path / "h.png").is_file()
    exported = ["-pretrained", best, "-format", "paddle", "-output", tmp_path / "exported"]
    assert "largest difference" in on_the_device(plugin, "export_model.py", *exported)


def test_check_says_what_the_device_can_do(plugin):
    """Float32 only: Paddle's CPU build has no kernels in half precision for it to use."""
    command = [sys.executable, "-m", "paddlevit", "check", "-device", "custom:FakeCPU", "-json", "-batch_size", "1"]
    env = {**os.environ, "CUSTOM_DEVICE_ROOT": str(plugin), "GLOG_minloglevel": "2"}
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = {row["check"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert result.returncode == 2 and rows["device"]["result"] == "FakeCPU:0"
    assert all(rows[f"{variant}_digits, f32"]["ok"] for variant in ("pit", "hvt", "cvt", "hrformer", "regnet"))
    assert rows["pit_digits, O1 float16"]["result"] == "does not run: there is no float16 kernel of conv2d"
    assert rows["O1 bfloat16"]["result"].startswith("n/a: -amp_dtype bfloat16: Paddle has it on GPUs only")
    assert rows["pit_digits, resumed"]["ok"]


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
