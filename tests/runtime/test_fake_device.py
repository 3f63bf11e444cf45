"""What is not a CPU: whole runs on a plug-in device, whose operators are the CPU's. Nothing here is about speed.

The plug-in is compiled from the three .cc files here, against the headers that Paddle's wheel brings. Paddle switches
bfloat16 off on such devices.
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

from paddlevit.commands.device import VARIANTS
from paddlevit.commands.train import main
from paddlevit.config import variant_names
from paddlevit.runtime import launcher
from paddlevit.weights import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++") or shutil.which("clang++")
EVERYTHING = ["TRAIN.ACCUM_ITER", 2, "TRAIN.GRAD_CLIP", 1.0, "TRAIN.RANDOM_ERASE_PROB", 0.5, "TRAIN.MODEL_EMA", "true"]
EVERYTHING += ["TRAIN.MIXUP_ALPHA", 0.8, "TRAIN.CUTMIX_ALPHA", 1.0, "TRAIN.MODEL_EMA_WARMUP", "false"]
RUNS = {
    "pit_digits": ["TRAIN.NUM_EPOCHS", 2],
    # Paddle restores the generator of the device before it computes a block again; here the CPU's draws.
    "hvt_digits": ["TRAIN.RECOMPUTE", "true", "MODEL.DROPPATH", 0.0],
    "cvt_digits": [],
    "hrformer_digits": [],
    "regnet_digits": [],
    "pit_distilled_digits": ["TRAIN.DISTILLATION_TYPE", "none"],
}
# Commands in one process, as each start of one takes seconds; of check without its rows about speed, and fewer steps.
COMMANDS = """
import json, sys
from importlib import import_module
from paddlevit.commands import device
device._STEPS = 10
device._speed = device._data_path = lambda *_: ("", None)
device._two_processes = lambda name: (name, None)
for name, *argv in json.loads(sys.argv[1]):
    code = import_module(f"paddlevit.commands.{name}").main(argv)
    if code:
        sys.exit(code)
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to build the device with")]


@pytest.fixture(scope="module")
def plugin(once):
    """The folder that CUSTOM_DEVICE_ROOT names."""
    return once("plugin", compiled)


def compiled(folder):
    installed = Path(paddle.__file__).parent
    include = ["-I", installed / "include", "-I", installed / "include" / "third_party"]
    sources = [Path(__file__).with_name(name) for name in ("fake_device.cc", "fake_ccl.cc", "half_kernels.cc")]
    libraries = [installed / name for name in ("base/libpaddle.so", "libs/libphi_core.so", "libs/libcommon.so")]
    command = [COMPILER, "-O1", "-std=c++17", "-fPIC", "-shared", "-w", *include, *sources, *libraries]
    subprocess.run([*map(str, command), "-o", str(folder / "libfake.so")], check=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), classes=2, train=16, val=10)


def flags(variant, data, output, opts):
    always = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.BASE_LR", 1e-4, "REPORT_FREQ", 1]
    args = ["-cfg", variant, "-data_path", data, "-output", output, "-batch_size", 8, "-num_workers", 1, "-nprocs", 1]
    return [str(word) for word in (*args, "-opts", *always, *opts)]


def run_python(plugin, *words):
    """Python with the device."""
    env = {**os.environ, "CUSTOM_DEVICE_ROOT": str(plugin), "GLOG_minloglevel": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)


def on_the_device(plugin, *commands, device="custom:FakeCPU", code=0):
    """What the commands (name, *flags), which end with `code`, print and say of errors."""
    words = json.dumps([[*map(str, command), "-device", device] for command in commands])
    result = run_python(plugin, "-c", COMMANDS, words)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout, result.stderr


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def test_a_run_on_another_device_is_that_on_a_cpu(plugin, data, tmp_path):
    def words(variant, where):
        return flags(variant, data, tmp_path / where / variant, [*EVERYTHING, *RUNS[variant]])

    out, _ = on_the_device(plugin, *(("train", *words(variant, "other")) for variant in RUNS))
    assert out.count("on FakeCPU:0") == len(RUNS)
    for variant in RUNS:
        assert main(words(variant, "cpu"), nprocs=1) == 0
        other, cpu = (tmp_path / where / variant for where in ("other", "cpu"))
        assert losses(other) == pytest.approx(losses(cpu), rel=2e-4), variant
        for path in cpu.glob("epoch_*.pdparams"):
            ours, theirs = read_state_dict(other / path.name), read_state_dict(path)
            for key, value in theirs.items():  # of weights that AdamW moves by 1e-4 in a step
                assert np.abs(ours[key] - value).max() <= 2e-4, (variant, key)


def test_two_processes_with_two_devices_are_one_with_a_cpu(plugin, tmp_path, monkeypatch):
    """Accumulation, a sharded optimizer, blocks that are recomputed, the statistics of a BatchNorm, evaluation."""
    program, cases = ROOT / "tests" / "run" / "parallel_steps.py", ["8x2s", "16x1r"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)  # where Paddle leaves its http.log
    monkeypatch.setenv("FLAGS_use_stride_kernel", "0")
    command = [sys.executable, str(program)]
    folders = [str(image_folder(tmp_path / name, classes=10, val=11)) for name in ("cpu", "two")]
    subprocess.run([*command, "cpu", folders[0], "32x1"], check=True)
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", str(plugin))
    words = [*command, "custom:FakeCPU", folders[1], *cases]
    assert launcher.run(lambda restarted: words, 2, kind="FakeCPU", open_log=lambda: None) == 0
    alone, *two = (np.load(tmp_path / f"{name}.npz") for name in ("cpu/0", "two/0", "two/1"))
    for result in two:
        for case in cases:
            np.testing.assert_allclose(result[f"{case}/losses"], alone["32x1/losses"], rtol=1e-6, atol=0)
            np.testing.assert_allclose(result[f"{case}/weights"], alone["32x1/weights"], rtol=0, atol=1e-6)
        for one, other in zip(*(json.loads(str(each["evaluations"])) for each in (alone, result))):
            assert other == pytest.approx(one, rel=1e-6)
        own = [each["statistics/own"] for each in two]
        np.testing.assert_allclose(result["statistics/model"], (own[0] + own[1]) / 2, rtol=1e-12)


def test_resumed_evaluated_predicted_explained_and_exported(plugin, data, tmp_path):
    opts = [*EVERYTHING, "TRAIN.NUM_EPOCHS", 2]
    whole, half = (flags("pit_digits", data, tmp_path / name, opts) for name in ("run", "half"))
    best, image = ["-pretrained", tmp_path / "run" / "best.pdparams"], data / "val" / "0" / "0.png"
    out, _ = on_the_device(
        plugin,
        ("train", *whole, "-amp"),
        ("train", *half, "-amp", "-resume", tmp_path / "run" / "epoch_001"),
        ("train", "-cfg", "pit_digits", "-data_path", data, "-eval", "-amp", *best, "-output", tmp_path / "eval"),
        ("predict", *best, image, "-json"),
        ("visualize_attention", *best, "-image", image, "-output", tmp_path / "h.png"),
        ("export_model", *best, "-format", "paddle", "-output", tmp_path / "exported"),
        ("benchmark", "model", "-cfg", "pit_digits", "-train", "-amp", "-batch_size", 2, "-rounds", 1),
        ("verify", tmp_path / "run", "-steps", 1),
    )
    whole, half = (read_state_dict(tmp_path / name / "epoch_002.pdparams") for name in ("run", "half"))
    assert whole.keys() == half.keys() and all(np.array_equal(whole[name], half[name]) for name in whole)
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["num_images"] == 10
    (predicted,) = (line for line in out.splitlines() if line.startswith("{"))
    assert json.loads(predicted)["classes"] and (tmp_path / "h.png").is_file() and "largest difference" in out
    assert "training step, batch 2" in out and "FAILED" not in out


HALF = {  # steps, and how many of them overflow
    ("pit_digits", "O1"): (24, 1),
    ("pit_digits", "O2"): (8, 1),
    ("hvt_digits", "O1"): (4, 0),
    ("hvt_digits", "O2"): (4, 0),
    ("cvt_digits", "O1"): (4, 0),
    ("hrformer_digits", "O1"): (4, 2),
    ("regnet_digits", "O1"): (4, 0),
}


def test_half_precision(plugin):
    """All in one process, and one test: two of pytest's workers would compute all of it twice."""
    cases = [f"{variant},{level},{steps}" for (variant, level), (steps, _) in HALF.items()]
    result = run_python(plugin, Path(__file__).with_name("half_steps.py"), *cases)
    assert result.returncode == 0, result.stderr
    for (variant, level), (steps, skipped), line in zip(HALF, HALF.values(), result.stdout.splitlines()):
        check_half_precision(variant, level, steps, skipped, json.loads(line))


def check_half_precision(variant, level, steps, skipped, found):
    """Float32 but for rounding, also where a gradient overflows; resumed in the middle, it is the undisturbed run."""
    half, full = found["losses"]
    same = None if skipped == 0 else 1  # from the first overflow on, the other run is a step ahead
    assert half[:same] == pytest.approx(full[:same], rel=2e-3)
    if steps > 20:
        assert np.mean(half[-10:]) == pytest.approx(np.mean(full[-10:]), abs=0.1) and np.mean(full[-10:]) < 0.5
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
    out, _ = on_the_device(plugin, ("check", "-json"))
    rows = {row["check"]: row for row in map(json.loads, out.splitlines())}
    assert rows["device"]["result"] == "FakeCPU:0"
    for variant in variant_names(VARIANTS):
        assert all(rows[f"{variant}, {precision}"]["ok"] for precision in ("f32", "O1 float16", "O2 float16"))
    assert rows["O1 bfloat16"]["result"].startswith("n/a: -amp_dtype bfloat16: Paddle has it on GPUs only")
    assert rows["pit_digits, resumed"]["ok"] and rows["pit_digits, two processes"]["result"] == "custom:FakeCPU"
    assert rows["pit_digits, 10 steps"]["result"].endswith(" 1 skipped as they were not finite")
    logits = rows["pit_digits, attention logits"]
    assert logits["ok"] and " in O1 float16; " in logits["result"]


def test_a_device_that_there_is_not(plugin, data, tmp_path):
    words = flags("pit_digits", data, tmp_path / "run", [])
    _, errors = on_the_device(plugin, ("train", *words), device="custom:Other", code=2)
    assert "there is no such plug-in; found: custom:FakeCPU" in errors
