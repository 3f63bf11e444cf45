"""Whatever ends a run that has begun to train saves first, and `-resume auto` continues from there, bit for bit."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import image_folder

from paddlevit.commands.train import main
from paddlevit.data.loader import TrainLoader
from paddlevit.errors import UserError
from paddlevit.run import train as run_room
from paddlevit.training import checkpoint, engine
from paddlevit.weights import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "XCPU")
EPOCHS, BATCHES = 2, 4
OPTS = ["TRAIN.NUM_EPOCHS", EPOCHS, "TRAIN.WARMUP_EPOCHS", 1, "TRAIN.ACCUM_ITER", 3, "KEEP_LAST", 9, "REPORT_FREQ", 1]


def args(data, output, *more):
    flags = ["-cfg", "pit_digits", "-data_path", data, "-output", output, "-batch_size", 8, "-resume", "auto", *more]
    return [str(arg) for arg in (*flags, "-device", "cpu", "-opts", *OPTS)]


def train(data, output, *more):
    return main(args(data, output, *more), nprocs=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), classes=2, train=8 * BATCHES, val=10)


@pytest.fixture(scope="module")
def quiet(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiet")
    assert train(data, folder) == 0
    return read_state_dict(folder / f"epoch_00{EPOCHS}.pdparams")


def assert_resumes(data, folder, quiet):
    assert train(data, folder) == 0
    found = read_state_dict(folder / f"epoch_00{EPOCHS}.pdparams")
    assert all(np.array_equal(found[name], quiet[name]) for name in quiet)


def saved(folder):
    return sorted(path.stem for path in folder.glob("epoch_*.pdstate"))


@pytest.fixture
def bad_validation_image(data):
    path = data / "val" / "1" / "1.png"
    good = path.read_bytes()
    path.write_bytes(b"no image")
    yield lambda: path.write_bytes(good)
    path.write_bytes(good)


@pytest.fixture
def unseen(monkeypatch):
    """Of many validation images only some are tried at the start."""
    monkeypatch.setattr(run_room, "_IMAGES_TO_TRY", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("unseen")
def test_a_bad_validation_image_costs_nothing(data, quiet, tmp_path, bad_validation_image, capsys):
    assert train(data, tmp_path) == 2
    assert "1/1.png" in capsys.readouterr().err
    assert saved(tmp_path) == ["epoch_001"]
    assert train(data, tmp_path) == 2, "it is evaluated again, and nothing trained"
    assert saved(tmp_path) == ["epoch_001"]
    bad_validation_image()
    assert_resumes(data, tmp_path, quiet)


def test_a_bad_validation_image_is_met_before_the_first_epoch(data, tmp_path, bad_validation_image, capsys):
    assert train(data, tmp_path / "run") == 2
    assert "1/1.png" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batches", "stem"),
    [
        (3, "epoch_000_step_000003"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, None), (6, None), (7, "epoch_001_step_000003"))),
    ],
)
def test_an_error_of_the_training_data_saves_the_last_optimizer_step(data, quiet, tmp_path, monkeypatch, batches, stem):
    whole, done = TrainLoader.epoch, []

    def epoch(loader, *position):
        for batch in whole(loader, *position):
            if len(done) == batches:
                raise UserError("this image cannot be read")
            done.append(batch)
            yield batch

    monkeypatch.setattr(TrainLoader, "epoch", epoch)
    assert train(data, tmp_path) == 2
    assert [name for name in saved(tmp_path) if "step" in name] == [stem] * (stem is not None)
    monkeypatch.undo()
    assert_resumes(data, tmp_path, quiet)


@pytest.mark.slow
def test_any_error_of_an_evaluation_saves(data, quiet, tmp_path, monkeypatch):
    def evaluate(*args, **options):
        raise MemoryError("out of memory")

    monkeypatch.setattr(run_room, "evaluate", evaluate)
    with pytest.raises(MemoryError):
        train(data, tmp_path)
    assert saved(tmp_path) == ["epoch_001"]
    monkeypatch.undo()
    assert_resumes(data, tmp_path, quiet)


def test_half_an_optimizer_step_is_not_saved(data, tmp_path, monkeypatch):
    def broadcast(shards):
        raise RuntimeError("in the middle of an update")

    monkeypatch.setattr(engine.Shards, "broadcast", broadcast)
    with pytest.raises(RuntimeError, match="middle"):
        train(data, tmp_path)
    assert saved(tmp_path) == []


@pytest.mark.usefixtures("unseen")
def test_the_error_that_ended_the_run_is_told_where_saving_fails_too(data, tmp_path, monkeypatch, bad_validation_image):
    def save(*args, **options):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(checkpoint, "save", save)
    assert train(data, tmp_path) == 2
    log = (tmp_path / "log.txt").read_text()
    assert "not saved after an error: cannot write: No space left" in log


def test_of_processes_that_fail_together_one_saves(tmp_path):
    state = {"model": {}, "ema": None, "optimizer": {}, "progress": {"epoch": 1, "step": 0}}
    claim = tmp_path / "epoch_001.pdstate.claim.part"
    claim.touch()
    assert checkpoint.save_once(tmp_path, state, keep=2) is None and saved(tmp_path) == []
    assert claim.exists(), "the other one's"
    claim.unlink()
    assert checkpoint.save_once(tmp_path, state, keep=2).stem == "epoch_001"
    written = (tmp_path / "epoch_001.pdstate").stat().st_mtime_ns
    assert checkpoint.save_once(tmp_path, state, keep=2) is None
    assert (tmp_path / "epoch_001.pdstate").stat().st_mtime_ns == written
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [getattr(signal, f"SIG{name}") for name in SIGNALS])
def test_every_signal_that_asks_to_stop_saves(data, quiet, tmp_path, monkeypatch, signum):
    def evaluate(*args, **options):
        os.kill(os.getpid(), signum)
        return engine.evaluate(*args, **options)

    monkeypatch.setattr(run_room, "evaluate", evaluate)
    before = signal.getsignal(signum)
    assert train(data, tmp_path) == 128 + signum
    assert signal.getsignal(signum) is before
    assert saved(tmp_path) == ["epoch_001"]
    monkeypatch.undo()
    assert_resumes(data, tmp_path, quiet)


@pytest.mark.slow
def test_what_cannot_be_resumed_exactly_or_at_all_is_refused(data, quiet, tmp_path, monkeypatch, capsys):
    assert stopped_in_the_middle(data, tmp_path, monkeypatch) == 143
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.txt"}
    for more, said in (
        (["-seed", 1], "with SEED 0, now it is 1: resume with 0, or from the end of an epoch"),
        (["-batch_size", 4], "with DATA.BATCH_SIZE x processes 8, now it is 4"),
        (["-opts", "TRAIN.REPEATED_AUG", 2], "with TRAIN.REPEATED_AUG 1, now it is 2"),
        (["-opts", "TRAIN.ACCUM_ITER", 1], "with TRAIN.ACCUM_ITER 3, now it is 1"),
        (["-image_size", 48], "is of a model for another DATA.IMAGE_SIZE (pos_embed): resume with the same size"),
    ):
        assert main(args(data, tmp_path) + [str(word) for word in more], nprocs=1) == 2
        assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.txt"} == before
    assert_resumes(data, tmp_path, quiet)


def stopped_in_the_middle(data, folder, monkeypatch):
    step = engine.Trainer.train_step

    def train_step(trainer, *batch):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    monkeypatch.setattr(engine.Trainer, "train_step", train_step)
    code = train(data, folder)
    monkeypatch.undo()
    return code


@pytest.mark.slow
def test_other_settings_are_told_and_taken_and_so_is_that_nothing_is_left(data, tmp_path):
    assert train(data, tmp_path) == 0
    assert main([*args(data, tmp_path), "TRAIN.NUM_EPOCHS", "3", "TRAIN.BASE_LR", "1e-4"], nprocs=1) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "changed on resume: TRAIN.NUM_EPOCHS was 2, now 3" in log
    assert "changed on resume: TRAIN.BASE_LR was 0.003, now 0.0001" in log
    assert "peak learning rate 1.000e-04" in log or "TRAIN.BASE_LR 0.0001" in log
    assert "nothing left to train" not in log
    assert main([*args(data, tmp_path), "TRAIN.NUM_EPOCHS", "1"], nprocs=1) == 0
    assert "nothing left to train: 3 of 1 epochs are done" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "config.1.yaml").is_file() and (tmp_path / "config.2.yaml").is_file()


def start(tool, data, output, *more, epochs=EPOCHS, **options):
    command = [sys.executable, ROOT / "tools" / tool, *args(data, output, *more), "TRAIN.NUM_EPOCHS", str(epochs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    deadline, log = time.monotonic() + 300, output / "log.txt"
    while not (log.is_file() and f"epoch 1/{epochs}  step 1/" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_a_run_under_nohup_ignores_the_end_of_its_terminal(data, tmp_path):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = start("main_single_gpu.py", data, tmp_path / "run", preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    assert process.wait(300) == 0, process.communicate()


@pytest.mark.slow
def test_the_end_of_a_terminal_reaches_the_whole_group(data, tmp_path):
    more = ["-batch_size", 4, "-nprocs", 2, "-num_workers", 1]
    process = start("main_multi_gpu.py", data, tmp_path / "run", *more, epochs=1000, start_new_session=True)
    os.killpg(process.pid, signal.SIGHUP)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGHUP, out + err
    assert "stopped by SIG" in out and "Traceback" not in err
    assert saved(tmp_path / "run")


@pytest.mark.slow
def test_a_terminal_that_is_gone_swallows_the_log_and_nothing_else(data, tmp_path):
    """As when an ssh connection breaks: SIGHUP, and all that is written from then on is an error."""
    log, command = tmp_path / "run" / "log.txt", [sys.executable, ROOT / "tools" / "main_single_gpu.py"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*map(str, command), *args(data, tmp_path / "run"), "TRAIN.NUM_EPOCHS", "1000"])
    while not (log.is_file() and "epoch 2/" in log.read_text()):
        os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert "stopped by SIGHUP after saving" in log.read_text()


@pytest.mark.slow
def test_a_bad_validation_image_of_another_process_costs_nothing(data, tmp_path):
    """One of 410, read by the second of two processes, which saves."""
    (tmp_path / "train").symlink_to(data / "train")
    (tmp_path / "val" / "0").mkdir(parents=True)
    good = (data / "val" / "1" / "1.png").read_bytes()
    for i in range(410):
        (tmp_path / "val" / "0" / f"{i:03d}.png").write_bytes(b"no image" if i == 3 else good)
    command = [sys.executable, ROOT / "tools" / "main_multi_gpu.py", *args(tmp_path, tmp_path / "run", "-nprocs", 2)]
    command[command.index("8")] = "4"
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "0/003.png" in result.stderr
    assert saved(tmp_path / "run") == ["epoch_001"]
    assert "saved" in (tmp_path / "run" / "log_rank1.txt").read_text()
    (tmp_path / "val" / "0" / "003.png").write_bytes(good)
    assert train(tmp_path, tmp_path / "run") == 0, "by one process"
    assert "resuming from" in (tmp_path / "run" / "log.txt").read_text()
