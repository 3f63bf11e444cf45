"""`paddlevit check`: the machine, and every family on its device (another one: tests/runtime/test_fake_device.py)."""

from __future__ import annotations

import json
import re

import pytest

from paddlevit.commands import check, device
from paddlevit.config import variant_names


@pytest.fixture
def quick(monkeypatch):
    """Without the rows about speed and about 100 steps, whose parts have tests of their own."""
    for rows in ("_finite", "_attention_logits", "_speed", "_data_path"):
        monkeypatch.setattr(device, rows, lambda *_: ("", None))


@pytest.mark.slow
def test_a_sound_cpu(capsys, monkeypatch):
    monkeypatch.setattr(device, "_SPEED_VARIANT", "pit_ti_224")
    assert check.main(["-json", "-batch_size", "1"]) == 0
    rows = {row["check"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["device"]["result"] == "cpu"
    assert all(rows[f"{variant}, f32"]["ok"] for variant in variant_names(device.VARIANTS))
    assert rows["O1 bfloat16"] == {"check": "O1 bfloat16", "result": "n/a: a CPU computes in float32", "ok": None}
    assert rows["pit_digits, resumed"]["result"].endswith("0.0e+00") and rows["pit_digits, 100 steps"]["ok"]
    assert rows["pit_digits, two processes"]["result"] == "n/a: it needs two devices"
    assert re.match(r"largest q k / sqrt\(d\) \d+\.\d+ in f32;", rows["pit_digits, attention logits"]["result"])
    for speed in ("pit_ti_224, training step", "data path, to compare with a training step"):
        assert "images/s" in rows[speed]["result"]


def test_plain_attention_is_checked_where_there_is_another():
    assert dict(device._usable("cpu"))[device._PLAIN] == "a CPU computes in float32"
    _, ok = device._computed("pit_digits", device._PLAIN, "cpu")  # in float32, as on every CPU
    assert ok


@pytest.mark.slow
def test_two_processes_are_as_one_and_what_they_say_is_shown():
    row = device._tried("two", device._two_processes, "cpu")
    assert row.ok and float(row.result.split()[3]) < 1e-5
    row = device._tried("two", device._two_processes, "tpu")
    assert (
        row.ok is False
        and row.result == "does not run: by 1: error: -device must be auto, gpu, cpu or custom:NAME, got 'tpu'"
    )


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_is_shown_and_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(device, "VARIANTS", "pit_digits")
    factors, build = iter((1.0, 1.0, 1.5)), device.build_model

    def build_model(config):  # for the weights, on the CPU, on the device; later ones are of other rows
        model, factor = build(config), next(factors, 1.0)
        model.register_forward_post_hook(lambda layer, images, logits: logits * factor)
        return model

    monkeypatch.setattr(device, "build_model", build_model)
    assert check.main([]) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert line.startswith("| pit_digits, f32 | error of logits 5.0e-01, of gradients ")


@pytest.mark.usefixtures("quick")
def test_a_machine_without_scikit_learn_is_sound(monkeypatch, capsys):
    monkeypatch.setattr(device, "VARIANTS", "nothing")
    monkeypatch.setattr(device, "_resumed", lambda *_: ("", None))
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(device, "_data_path", lambda: pytest.fail("needs its photographs"))
    assert check.main([]) == 0
    assert "n/a: it needs scikit-learn: pip install '.[demo]' in the clone" in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "ok"), [(1, True), (1e4, False)])
def test_attention_logits_that_float16_does_not_hold(monkeypatch, factor, ok):
    trainer = device._trainer("AMP", False)
    for name, value in trainer.model.state_dict().items():
        if "qkv.weight" in name:
            value.set_value(value * factor)
    monkeypatch.setattr(device, "_trained", lambda half: (trainer, None))
    row = device._tried("logits", device._attention_logits, False)
    assert row.ok is ok, row.result


@pytest.mark.usefixtures("quick")
def test_mistakes(capsys):
    assert check.main(["-device", "tpu"]) == 2
    assert "-device must be auto, gpu, cpu or custom:NAME, got 'tpu'" in capsys.readouterr().err
    assert check.main(["-batch_size", "0"]) == 2
    assert "-batch_size must be 1 or more, got 0" in capsys.readouterr().err
