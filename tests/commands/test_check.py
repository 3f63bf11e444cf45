"""`paddlevit check`: the machine, and every family on its device (another one: tests/runtime/test_fake_device.py)."""

from __future__ import annotations

import json

import pytest

from paddlevit.commands import check


@pytest.fixture
def quick(monkeypatch):
    """Without the rows about speed and about 100 steps, whose parts have tests of their own."""
    monkeypatch.setattr(check, "_speed", lambda batch_size, amp: iter(()))
    monkeypatch.setattr(check, "_finite", lambda amp: check.Row("100 steps", "left out"))


@pytest.mark.slow
def test_a_sound_cpu(capsys, monkeypatch):
    monkeypatch.setattr(check, "_SPEED_VARIANT", "pit_ti_224")
    assert check.main(["-json", "-batch_size", "1"]) == 0
    rows = {row["check"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["device"]["result"] == "cpu"
    assert all(rows[f"{variant}, f32"]["ok"] for variant in check.VARIANTS)
    assert rows["O1 bfloat16"] == {"check": "O1 bfloat16", "result": "n/a: a CPU computes in float32", "ok": None}
    assert rows["pit_digits, resumed"]["result"].endswith("0.0e+00") and rows["pit_digits, 100 steps"]["ok"]
    assert rows["pit_digits, two processes"]["result"] == "n/a: it needs two GPUs"
    assert (
        "images/s" in rows["pit_ti_224, training step"]["result"]
        and "a training step takes" in rows["data path"]["result"]
    )


@pytest.mark.slow
def test_two_processes_are_as_one_and_what_they_say_is_shown():
    row = check._two_processes("cpu")
    assert row.ok and float(row.result.split()[3]) < 1e-5
    row = check._two_processes("tpu")
    assert (
        row.ok is False
        and row.result == "does not run: by 1: error: -device must be auto, gpu, cpu or custom:NAME, got 'tpu'"
    )


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_is_shown_and_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(check, "VARIANTS", ("pit_digits",))
    logits = iter((1.0, 1.5))
    forward = check._forward
    monkeypatch.setattr(check, "_forward", lambda *args: forward(*args) * next(logits))
    assert check.main([]) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert line.startswith("| pit_digits, f32 | error of logits 5.0e-01, of gradients ")


@pytest.mark.usefixtures("quick")
def test_mistakes(capsys):
    assert check.main(["-device", "tpu"]) == 2
    assert "-device must be auto, gpu, cpu or custom:NAME, got 'tpu'" in capsys.readouterr().err
    assert check.main(["-batch_size", "0"]) == 2
    assert "-batch_size must be 1 or more, got 0" in capsys.readouterr().err
