"""Runs that can be checked: what has changed since is named, and steps are repeated bit for bit."""

from __future__ import annotations

import json
import shutil

import numpy as np
import paddle
import pytest
from tiny import image_folder

from paddlevit.commands import train, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified")
    image_folder(folder / "data", classes=2, train=32, val=4)
    args = ["-cfg", "pit_digits", "-data_path", folder / "data", "-output", folder / "run", "-batch_size", 8]
    opts = ["TRAIN.NUM_EPOCHS", 3, "TRAIN.WARMUP_EPOCHS", 0, "REPORT_FREQ", 2, "TRAIN.ACCUM_ITER", 3]
    assert train.main([str(word) for word in (*args, "-num_workers", 0, "-opts", *opts)], nprocs=1) == 0
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run that may be touched."""
    return shutil.copytree(made / "run", tmp_path / "run")


def found(capsys, *argv, code):
    assert verify.main([str(word) for word in argv]) == code
    out = capsys.readouterr()
    return [line for line in out.out.splitlines() if code == 0 or line.startswith("DIFFERS")] or [out.err]


@pytest.mark.parametrize(("steps", "done"), [((), 2), (("-steps", 3), 4), (("-steps", 99), 4)])
def test_a_run_is_as_certified_and_its_steps_can_be_repeated(run, capsys, steps, done):
    (run / "average.pdparams").write_bytes(b"made later")
    lines = found(capsys, run, *steps, code=0)
    assert lines[-1] == f"ok       steps 1 to {done} of epoch 3, again: equal bit for bit"
    assert all(line.endswith(": as certified") for line in lines[:-1]) and len(lines) > 8
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["PaddlePaddle"] == paddle.__version__ and certificate["training images"].startswith("32 (")


def test_other_weights_and_settings_are_told_apart(run, capsys):
    (run / "best.pdparams").write_bytes(b"other")
    (line,) = found(capsys, run, code=2)
    assert line.startswith("DIFFERS  best.pdparams: was ")
    (run / "best.pdparams").unlink()
    (line,) = found(capsys, run, code=2)
    assert line.endswith(", now gone")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("SEED: 0", "SEED: 1"))
    configuration, _, steps = found(capsys, run, code=2)
    assert configuration.startswith("DIFFERS  configuration: was ") and "again: the loss is " in steps


def test_other_data_is_told(made, run, capsys):
    path = made / "data" / "train" / "0" / "0.png"
    image = path.read_bytes()
    path.rename(path.with_name("00.png"))
    try:
        assert any("training images: was 32 (" in line for line in found(capsys, run, code=2))
    finally:
        path.with_name("00.png").rename(path)
    path.write_bytes((path.parent / "2.png").read_bytes())
    try:
        (line,) = found(capsys, run, "-steps", 4, code=2)
        assert "steps 1 to" in line, "the list is the same, the pixels are not"
    finally:
        path.write_bytes(image)


def test_data_that_has_moved_is_named(made, run, tmp_path, capsys):
    moved = shutil.copytree(made / "data", tmp_path / "moved")
    assert all("as certified" in line for line in found(capsys, run, "-data_path", moved, code=0)[:-1])


def test_a_changed_checkpoint_is_told(run, capsys):
    weights = {name: value.numpy() for name, value in paddle.load(str(run / "epoch_002.pdparams")).items()}
    weights["head.bias"] = np.nextafter(weights["head.bias"], 1)
    paddle.save(weights, str(run / "epoch_002.pdparams"))
    weights, steps = found(capsys, run, code=2)
    assert weights.startswith("DIFFERS  epoch_002.pdparams: was ") and "of epoch 3, again: the " in steps


def test_runs_that_cannot_be_verified(run, tmp_path, capsys):
    certificate = run / "certificate.json"
    known = json.loads(certificate.read_text())
    for content, said in (
        (json.dumps({**known, "processes": 2}), "was trained by 2 processes; only runs of one can be replayed"),
        ("{", "is damaged: it holds no JSON"),
    ):
        certificate.write_text(content)
        verify.main([str(run)])
        assert said in capsys.readouterr().err
    certificate.write_text(json.dumps(known))
    state = run / "epoch_002.pdstate"
    whole = state.read_bytes()
    state.write_bytes(whole[:1000])
    assert verify.main([str(run)]) == 2 and f"error: {state} cannot be read" in capsys.readouterr().err
    state.write_bytes(whole)
    certificate.unlink()
    assert "does not exist: a run writes it when it ends" in found(capsys, run, code=2)[0]
    certificate.write_text(json.dumps(known))
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"val"' in line))
    verify.main([str(run)])
    assert "nothing to replay" in capsys.readouterr().err


def test_without_a_checkpoint_the_run_is_repeated_from_its_start(run, capsys):
    for path in run.glob("epoch_*.pdstate"):
        path.unlink()
    assert found(capsys, run, code=0)[-1] == "ok       steps 1 to 2 of epoch 1, again: equal bit for bit"
