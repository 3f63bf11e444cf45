"""tools/benchmark.py: every engine and stage is measured on tiny inputs, and mistakes are named."""

from __future__ import annotations

import json

import paddle
import pytest
from PIL import Image

from paddlevit.commands.benchmark import ENGINES, by_turns, main
from paddlevit.data.prepare import write_large_cuts


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_large_cuts(folder, 3)
    return folder


def test_photographs_cost_what_imagenets_do(photographs):
    files = sorted(photographs.rglob("*.jpg"))
    assert len(files) == 6
    for file in files:
        assert 40_000 < file.stat().st_size < 140_000
        with Image.open(file) as image:
            assert sorted(image.size) == [375, 500]


def test_steps_take_turns_and_short_ones_are_repeated():
    now, calls = [0.0], []

    def step(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds

        return run

    taken = by_turns({"long": step("long", 1.0), "short": step("short", 0.1)}, 3, lambda: now[0])
    assert taken["long"] == pytest.approx([1.0] * 3) and taken["short"] == pytest.approx([0.1] * 3)
    assert calls == ["long"] * 2 + ["short"] * 2 + ["long", "short", "short"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["-engine", "paddle", "program"], ["-train"], ["-engine", "openvino", "-precision", "f32"]]
)
def test_model(flags, capsys):
    if "openvino" in flags:
        pytest.importorskip("paddle2onnx", reason="it has no build for Python 3.13")
    assert main(["model", "-cfg", "pit_digits", "-rounds", "2", "-batch_size", "2", "-json", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["name"], result["train"], result["batch_size"]) == ("pit_digits", "-train" in flags, 2)
    engines = [flag for flag in flags if flag in ENGINES] or ["paddle"]
    assert list(result["engines"]) == engines and result["memory_mib"] > 10
    for row in result["engines"].values():
        assert row["images_per_sec"] == pytest.approx(2 / row["seconds"]) and row["macs_per_sec"] > 0


@pytest.mark.filterwarnings("error")
def test_amp_on_a_cpu_is_said_once_and_in_our_words(capsys):
    assert main(["model", "-cfg", "pit_digits", "-rounds", "1", "-batch_size", "1", "-train", "-amp"]) == 0
    assert capsys.readouterr().err == "warning: -amp does nothing on a CPU: computing in float32\n"


def test_model_table(capsys):
    assert main(["model", "-cfg", "pit_digits", "-rounds", "1", "-batch_size", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("pit_digits, inference, batch 2, 1 thread(s); ")
    assert second.startswith("paddle ") and "images/s" in second and "GMACs/s" in second


@pytest.mark.slow
def test_data(capsys):
    argv = ["data", "-images", "1", "-rounds", "1", "-json", "-workers", "0", "1", "-opts", "DATA.IMAGE_SIZE", "32"]
    assert main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["images_per_sec"]) == ["0", "1"] and all(rate > 0 for rate in result["images_per_sec"].values())


@pytest.mark.slow
def test_data_table(photographs, capsys):
    argv = ["data", "-images", "4", "-rounds", "1", "-data_path", str(photographs), "-workers", "0"]
    assert main([*argv, "-opts", "DATA.IMAGE_SIZE", "32", "DATA.BATCH_SIZE", "2", "TRAIN.RESIZER", "pillow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["loader with 0 workers"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["speed"], "invalid choice: 'speed'"),
        (["model"], "-cfg"),
        (["model", "-cfg", "pit_digits", "-engine", "tflite"], "invalid choice: 'tflite'"),
        (["model", "-cfg", "pit_digits", "-train", "-engine", "onnx"], "-engine must be paddle with -train, got onnx"),
        (["model", "-cfg", "pit_digits", "-rounds", "0"], "-rounds must be 1 or more, got 0"),
        (["model", "-cfg", "pit_digits", "-device", "gpu"], "-device gpu: this PaddlePaddle is built for CPU"),
        (["model", "-cfg", "pit_digits", "-device", "tpu"], "-device must be auto, gpu, cpu or custom:NAME, got 'tpu'"),
        (["model", "-cfg", "pit_digits", "-train", "-opts", "MODEL.NUM_CLASSES", "0"], "must be 1 or more with -train"),
        (["data", "-images", "0"], "-images must be 1 or more, got 0"),
        (["data", "-data_path", "nowhere"], "nowhere"),
        (["data", "-what"], "-what"),
    ],
)
def test_mistakes_are_named(argv, message, capsys):
    if "gpu" in argv and paddle.device.is_compiled_with_cuda():
        pytest.skip("there may be one")
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err


def test_precision_is_openvinos(capsys):
    assert main(["model", "-cfg", "pit_digits", "-precision", "bf16"]) == 2
    assert "-precision bf16 of -engine paddle, allowed: f32 (others: openvino)" in capsys.readouterr().err
