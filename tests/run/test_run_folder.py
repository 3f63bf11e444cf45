"""The run's folder: whose it is, what stays of a run that could not begin, and best weights that are gone."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddlevit.commands import train as command
from paddlevit.config import get_config
from paddlevit.data.sources import say_once
from paddlevit.errors import UserError
from paddlevit.run import folder as room
from paddlevit.runtime import process


def opened(output, resume=""):
    with room.open_folder(get_config("pit_digits", ["OUTPUT", str(output), "MODEL.RESUME", str(resume)])) as path:
        return path


@pytest.fixture
def runs(tmp_path):
    """Two folders with a checkpoint each."""
    for name in ("ours", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "epoch_005.pdstate").touch()
    return tmp_path


def test_going_on_from_elsewhere_in_the_folder_of_another_run_is_refused(runs, monkeypatch):
    for resume in (runs / "other", runs / "other" / "epoch_005", runs / "other" / "epoch_005.pdparams"):
        with pytest.raises(UserError, match=r"ours already holds a run \(epoch_005.*other.*-resume auto"):
            opened(runs / "ours", resume)
    assert {path.name for path in (runs / "ours").iterdir()} - {".lock"} == {"epoch_005.pdstate"}
    monkeypatch.chdir(runs)
    for resume in ("auto", runs / "ours", "ours/epoch_005", "./ours/../ours/epoch_005.pdstate"):
        assert opened(runs / "ours", resume) == runs / "ours"
    assert opened(runs / "new", runs / "other") == runs / "new"


def test_half_a_checkpoint_of_its_own_does_not_stop_a_run_that_goes_on_from_elsewhere(runs):
    """It was killed while it saved for the first time; it is started again as it was."""
    (runs / "new").mkdir()
    (runs / "new" / "epoch_006.pdparams").touch()
    assert opened(runs / "new", runs / "other") == runs / "new"
    with pytest.raises(UserError, match="already holds a run"):
        opened(runs / "new")


def test_what_is_said_once_is_in_the_log_of_each_run(tmp_path):
    for name in ("one", "two"):
        with room.open_folder(get_config("pit_digits", ["OUTPUT", str(tmp_path / name)])) as path:
            say_once("skipped 2 files")
            say_once("skipped 2 files")
        assert (path / "log.txt").read_text().count("skipped 2 files") == 1


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    config = get_config("pit_digits", ["OUTPUT", str(tmp_path / "a" / "b" / "run")])
    for error, left in ((UserError("the data"), []), (RuntimeError("ours"), ["run"])):
        with pytest.raises(type(error)), room.open_folder(config) as path:
            (path / "metrics.jsonl").touch()
            raise error
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == left


def test_a_run_that_has_begun_keeps_its_folder(tmp_path):
    with (
        pytest.raises(UserError),
        room.open_folder(get_config("pit_digits", ["OUTPUT", str(tmp_path / "run")])) as path,
    ):
        (path / "config.yaml").touch()
        raise UserError("an image")
    assert (tmp_path / "run" / "log.txt").is_file()


def test_a_run_that_cannot_begin_leaves_what_was_there(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError), room.open_folder(get_config("pit_digits", ["OUTPUT", str(tmp_path / "mine")])):
        raise UserError("the data")
    assert (tmp_path / "mine" / "notes.txt").is_file()


def test_a_run_that_cannot_begin_leaves_what_came_meanwhile(tmp_path):
    """Such as what another evaluation has found."""
    config = get_config("pit_digits", ["OUTPUT", str(tmp_path / "run")])
    with pytest.raises(UserError), room.open_folder(config) as path:
        (path / "eval.json").touch()
        raise UserError("the data")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["eval.json"]


@pytest.mark.parametrize("main", [True, False])
def test_best_weights_that_are_gone_are_forgotten_by_all_processes(tmp_path, monkeypatch, main):
    """One that still knew them would evaluate on, while the others are done: each would wait for the other."""
    trainer = SimpleNamespace(model=None, ema=None, load_state=lambda *_: None, best={"acc1": 99.0, "sha256": "0" * 64})
    asked = []
    monkeypatch.setattr(process, "is_main", lambda: main)
    monkeypatch.setattr(process, "all_reduce_max", lambda value: asked.append(value) or 1)
    monkeypatch.setattr(room, "load_weights", lambda *_: SimpleNamespace(resized=[]))
    resumed = {"model": {}, "optimizer": {}, "progress": {}, "path": tmp_path / "epoch_001.pdstate"}
    room.restore(trainer, resumed, tmp_path)
    assert asked == [int(main)]
    assert trainer.best == {}


HOLD = """
import os, sys, time
from paddlevit.commands import train as command
from paddlevit.config import get_config
from paddlevit.run.folder import open_folder
with open_folder(get_config("pit_digits", ["OUTPUT", sys.argv[1], "MODEL.RESUME", "auto"])):
    if os.fork() == 0:  # as workers that read data are forked, and outlive a run that is killed
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    while "held" not in process.stdout.readline():
        assert process.poll() is None
    return process


@pytest.mark.slow
def test_the_folder_of_a_run_is_refused_to_another_one_until_it_ends(tmp_path):
    process, folder = hold(tmp_path / "run"), tmp_path / "run"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    try:
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for resume in ("", "auto"):
            with pytest.raises(UserError, match=rf"run is in use by another run \(process {process.pid} on "):
                opened(folder, resume)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        assert (folder / "log.txt").is_file()
        with room.open_folder(get_config("pit_digits", ["OUTPUT", str(folder), "EVAL", True])) as path:
            assert path == folder, "an evaluation may write there meanwhile"
        with pytest.raises(UserError, match="in use"):
            opened(folder, "auto")
        process.kill()
        process.wait()
        opened(folder, "auto")
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    assert children, "it was killed, and what it had forked lived on"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.setattr(room.logger.parent, "propagate", True)
    opened(tmp_path / "run")
    assert "cannot be locked ([Errno 37] No locks available)" in caplog.text


def described(folder, *opts, source=None, names=("a", "b")):
    config = get_config("pit_digits", ["OUTPUT", str(folder), "MODEL.NUM_CLASSES", 2, *opts])
    room.describe(folder, config, names, source and {"path": source / "epoch_001.pdstate"})


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(room.logger.parent, "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


def test_settings_that_change_on_resume_are_told_and_the_earlier_ones_stay(tmp_path, said):
    described(tmp_path)
    first = (tmp_path / "config.yaml").read_text()
    described(tmp_path, "MODEL.RESUME", "auto", source=tmp_path)
    assert said() == [] and not (tmp_path / "config.1.yaml").exists()
    described(tmp_path, "TRAIN.BASE_LR", 1e-4, "TRAIN.RAND_AUGMENT", True, source=tmp_path)
    second = (tmp_path / "config.yaml").read_text()
    assert said() == [
        "changed on resume: TRAIN.BASE_LR was 0.003, now 0.0001",
        "changed on resume: TRAIN.RAND_AUGMENT was False, now True",
    ]
    described(tmp_path, "TRAIN.NUM_EPOCHS", 7, "TRAIN.BASE_LR", 1e-4, source=tmp_path)
    assert (tmp_path / "config.1.yaml").read_text() == first
    assert (tmp_path / "config.2.yaml").read_text() == second
    assert get_config(tmp_path / "config.yaml").TRAIN.NUM_EPOCHS == 7
    assert said()[2:] == [
        "changed on resume: TRAIN.NUM_EPOCHS was 16, now 7",
        "changed on resume: TRAIN.RAND_AUGMENT was True, now False",
    ]


def test_settings_are_compared_with_those_of_the_folder_that_is_resumed_from(tmp_path, said):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    described(tmp_path / "old")
    described(tmp_path / "new", "SEED", 3, source=tmp_path / "old")
    assert said() == ["changed on resume: SEED was 0, now 3"]
    assert not (tmp_path / "new" / "config.1.yaml").exists()
    (tmp_path / "old" / "config.yaml").write_text("TRAIN: {BASE_LR")
    described(tmp_path / "new", "SEED", 3, source=tmp_path / "old")
    assert "settings that cannot be told" in said()[1] and "old/config.yaml" in said()[1]


def test_default_names_of_runs_that_start_in_the_same_second_are_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.time, "strftime", lambda format: "20261128-120000")
    names = [command._with_folder(get_config("pit_digits"), "pit_digits").OUTPUT for _ in range(3)]
    assert names == [f"./output/pit_digits-train-20261128-120000{suffix}" for suffix in ("", "-2", "-3")]
    for name in names:
        assert opened(name) == Path(name)


def test_a_run_that_cannot_begin_leaves_no_folder_of_a_default_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = command._with_folder(get_config("pit_digits"), "pit_digits")
    with pytest.raises(UserError), room.open_folder(config) as path:
        assert path.is_dir()
        raise UserError("the data")
    assert list((tmp_path / "output").iterdir()) == []
