"""The run's folder: whose it is, what stays of a run that could not begin, and best weights that are gone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from paddlevit.config import get_config
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
    assert {path.name for path in (runs / "ours").iterdir()} == {"epoch_005.pdstate"}
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


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    config = get_config("pit_digits", ["OUTPUT", str(tmp_path / "a" / "b" / "run")])
    for error, left in ((UserError("the data"), []), (RuntimeError("ours"), ["a"])):
        with pytest.raises(type(error)), room.open_folder(config) as path:
            (path / "config.yaml").touch()
            raise error
        assert [path.name for path in tmp_path.iterdir()] == left


def test_a_run_that_cannot_begin_leaves_what_was_there(tmp_path):
    (tmp_path / "mine" / "run").mkdir(parents=True)
    for output in (tmp_path / "mine" / "run", tmp_path / "mine" / "new"):
        with pytest.raises(UserError), room.open_folder(get_config("pit_digits", ["OUTPUT", str(output)])):
            raise UserError("the data")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["run"]


@pytest.mark.parametrize("main", [True, False])
def test_best_weights_that_are_gone_are_forgotten_by_all_processes(tmp_path, monkeypatch, main):
    """One that still knew them would evaluate on, while the others are done: each would wait for the other."""
    trainer = SimpleNamespace(model=None, ema=None, load_state=lambda *_: None, best={"acc1": 99.0, "sha256": "0" * 64})
    asked = []
    monkeypatch.setattr(process, "is_main", lambda: main)
    monkeypatch.setattr(process, "all_reduce_max", lambda value: asked.append(value) or 1)
    monkeypatch.setattr(room, "load_weights", lambda *_: None)
    resumed = {"model": {}, "optimizer": {}, "progress": {}, "path": tmp_path / "epoch_001.pdstate"}
    room.restore(trainer, resumed, tmp_path)
    assert asked == [int(main)]
    assert trainer.best == {}
