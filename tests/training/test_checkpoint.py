"""Checkpoints: complete or absent, verified, pruned, safe to read, untouched by a full disk."""

from __future__ import annotations

import os
import resource
import shutil

import numpy as np
import paddle
import pytest

from paddlevit.errors import MissingFileError, UserError
from paddlevit.training import checkpoint


def state(epoch, step=0, ema=False, value=1.0):
    weights = {"layer.weight": paddle.full([3, 2], value), "layer.bias": paddle.zeros([2])}
    return {
        "model": weights,
        "ema": {name: tensor * 2 for name, tensor in weights.items()} if ema else None,
        "optimizer": {"layer.weight/moment1_0": np.full((3, 2), value, "float32")},
        "progress": {"epoch": epoch, "step": step, "updates": 7, "loss_scale": {}, "best": {"acc1": 12.5}},
    }


def read(path):
    return {name: value.numpy() for name, value in paddle.load(str(path)).items()}


def test_round_trip(tmp_path):
    path = checkpoint.save(tmp_path, state(3, ema=True, value=0.1), keep=2)
    assert path.name == "epoch_003.pdstate"
    loaded = checkpoint.load(checkpoint.find(tmp_path), read)
    np.testing.assert_array_equal(loaded["model"]["layer.weight"], np.full((3, 2), 0.1, "float32"))
    np.testing.assert_array_equal(loaded["ema"]["layer.weight"], np.full((3, 2), 0.2, "float32"))
    np.testing.assert_array_equal(loaded["optimizer"]["layer.weight/moment1_0"], np.full((3, 2), 0.1, "float32"))
    assert loaded["progress"]["best"] == {"acc1": 12.5}
    assert list(paddle.load(str(tmp_path / "epoch_003.pdparams"))) == ["layer.weight", "layer.bias"]
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "eval.json.part").touch()  # of another program, which is writing there
    (tmp_path / "epoch_001.pdparams.part").touch()
    checkpoint.save(tmp_path, state(4, 0), keep=1)
    assert [path.name for path in tmp_path.glob("*.part")] == ["eval.json.part"]


def test_newest_counts_epochs_and_steps_and_old_ones_go(tmp_path):
    for epoch, step in ((1, 0), (2, 0), (2, 15), (10, 0)):
        checkpoint.save(tmp_path, state(epoch, step, ema=True), keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}{suffix}"
        for stem in ("epoch_002_step_000015", "epoch_010")
        for suffix in (".pdparams", "_ema.pdparams", ".pdstate")
    }
    assert checkpoint.newest(tmp_path).name == "epoch_010.pdstate"


@pytest.mark.parametrize(("offset", "value"), [(10, 99), (8, 0x41)])
def test_damage_in_the_table_of_an_archive_is_damage_too(tmp_path, offset, value):
    """An unknown method, or a flag of encryption: zipfile says that it does not know them yet, or wants a password."""
    checkpoint.save(tmp_path, state(1), keep=2)
    path = checkpoint.save(tmp_path, state(2), keep=2)
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + offset] = value
    path.write_bytes(raw)
    assert checkpoint.newest(tmp_path).name == "epoch_001.pdstate"


@pytest.mark.parametrize("where", ["epoch_001", "epoch_001.pdparams", "epoch_001.pdstate", ""])
def test_a_checkpoint_is_found_by_any_of_its_names(tmp_path, where):
    checkpoint.save(tmp_path, state(1), keep=2)
    assert checkpoint.find(tmp_path / where).name == "epoch_001.pdstate"


def test_nothing_to_find(tmp_path):
    with pytest.raises(MissingFileError, match="no complete checkpoint"):
        checkpoint.find(tmp_path)
    with pytest.raises(MissingFileError, match="epoch_009"):
        checkpoint.find(tmp_path / "epoch_009")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path):
    """Another checkpoint's, renamed."""
    shutil.copy(path.with_name(path.name.replace("2", "1")), path)


@pytest.mark.parametrize("name", ["epoch_002.pdparams", "epoch_002_ema.pdparams", "epoch_002.pdstate"])
@pytest.mark.parametrize("damage", [truncate, flip, os.unlink, swap])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, caplog, monkeypatch, name, damage):
    monkeypatch.setattr(checkpoint.logger.parent, "propagate", True)
    for epoch in (1, 2):
        checkpoint.save(tmp_path, state(epoch, ema=True), keep=3)
    damage(tmp_path / name)
    assert checkpoint.newest(tmp_path).name == "epoch_001.pdstate"
    if not (damage is os.unlink and name.endswith(".pdstate")):
        assert name in caplog.text
        with pytest.raises(UserError, match=name):
            checkpoint.find(tmp_path / "epoch_002")


def test_a_pickle_in_a_state_file_is_not_run(tmp_path):
    checkpoint.save(tmp_path, state(1), keep=2)

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(tmp_path / "x.npz", progress=np.array(Payload(), dtype=object))
    os.replace(tmp_path / "x.npz", tmp_path / "epoch_001.pdstate")
    assert checkpoint.newest(tmp_path) is None
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A limit on the size of files makes writing fail where a full disk would."""
    checkpoint.save(tmp_path, state(1), keep=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    small, big = {"w": paddle.zeros([3])}, {"w": paddle.zeros([300, 300])}
    following = {"model": small, "ema": big, "optimizer": {}, "progress": {"epoch": 2, "step": 0}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(UserError, match=r"cannot write .*epoch_002_ema\.pdparams"):
            checkpoint.save(tmp_path, following, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_are_written_by_protocol_4(tmp_path):
    """Paddle's 2 and 3 take large arrays apart, and it cannot read 5."""
    checkpoint.write_weights(tmp_path / "w.pdparams", paddle.nn.Linear(2, 2).state_dict())
    assert (tmp_path / "w.pdparams").read_bytes()[:2] == b"\x80\x04"
