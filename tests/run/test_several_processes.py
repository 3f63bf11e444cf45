"""Whole runs on several processes, by the tool itself and by Paddle's launcher, on one machine and on two."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlevit.commands import train
from paddlevit.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 20  # so many that no signal comes after the last one, however slowly a launcher hands it on
OPTS = ["-opts", "TRAIN.NUM_EPOCHS", EPOCHS, "TRAIN.WARMUP_EPOCHS", "1.0", "REPORT_FREQ", "1"]
LAUNCH = ["-m", "paddle.distributed.launch", "--nproc_per_node", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dark and bright images: 96 to train on, 9 to validate."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 96), ("val", 9)):
        lines = []
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 128, (32, 32)) + 128 * (i % 2)
            Image.fromarray(pixels.astype("uint8")).save(folder / f"{split}{i}.png")
            lines.append(f"{split}{i}.png {i % 2}\n")
        (folder / f"{split}_list.txt").write_text("".join(lines))
    return folder


def flags(data, output, *more, batch_size=8):
    args = ["-cfg", "pit_digits", "-data_path", data, "-output", output, "-device", "cpu", "-batch_size", batch_size]
    return [str(word) for word in (*args, *more, *OPTS)]


@contextlib.contextmanager
def started(log, *command):
    """A running command in a process group of its own, which is killed if the test fails."""
    with log.open("w") as file:
        words = [sys.executable, *map(str, command)]
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(pattern, folder, *processes):
    deadline = time.monotonic() + 300
    while not (folder / "log.txt").is_file() or not re.search(pattern, (folder / "log.txt").read_text()):
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline, pattern
        time.sleep(0.005)


def children(process):
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


def final_weights(folder):
    return (folder / f"epoch_{EPOCHS:03d}.pdparams").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(data, once):
    def run(folder):
        out = folder / "out"
        with started(out, ROOT / "tools/main_multi_gpu.py", *flags(data, folder / "run", "-nprocs", 2)) as process:
            assert process.wait(timeout=300) == 0, out.read_text()

    return once("undisturbed", run) / "run"


@pytest.mark.slow
def test_a_run_whose_process_hangs_is_started_again_and_ends_the_same(data, undisturbed, tmp_path):
    restarted, out = tmp_path / "run", tmp_path / "out"
    args = flags(data, restarted, "-nprocs", 2, "-max_restarts", 3, "-hang_timeout", 5)
    with started(out, ROOT / "tools/main_multi_gpu.py", *args) as process:
        wait_for(rf"epoch 2/{EPOCHS}  step 3/6", restarted, process)
        os.kill(children(process)[1], signal.SIGSTOP)
        assert process.wait(timeout=300) == 0, out.read_text()
    assert final_weights(restarted) == final_weights(undisturbed)
    log = (restarted / "log.txt").read_text()
    assert re.search(r"ERROR +rank 1 \(log_rank1.txt\) has made no progress within -hang_timeout", log)
    assert re.search(r"starting again: restart 1 of 3\n.* resuming from .*epoch_001", log)
    lines = [json.loads(line) for line in (restarted / "metrics.jsonl").read_text().splitlines()]
    assert {line["num_images"] for line in lines if line["phase"] == "val"} == {9}
    assert (restarted / "log_rank1.txt").is_file()


@pytest.mark.slow
def test_two_machines_stop_and_resume_together(data, undisturbed, tmp_path):
    """Two of Paddle's launchers, which know of each other by an address only; SIGTERM reaches one of them."""

    def machine(stack, rank, port):
        where = ["--nnodes", "2", "--master", f"127.0.0.1:{port}", "--rank", rank, "--log_dir", tmp_path / f"log{rank}"]
        args = flags(data, tmp_path / "run", "-resume", "auto", "-num_workers", 1)
        command = [*LAUNCH, *where, ROOT / "tools/main_multi_gpu.py", *args]
        return stack.enter_context(started(tmp_path / f"out{rank}", *command))

    with contextlib.ExitStack() as stack:
        port = free_port()
        machines = [machine(stack, rank, port) for rank in range(2)]
        wait_for(rf"epoch 2/{EPOCHS}  step 1/6", tmp_path / "run", *machines)
        machines[1].terminate()
        codes = [each.wait(timeout=300) for each in machines]
    assert codes == [143, 15], (tmp_path / "out0").read_text()  # 15 is Paddle's own way to say it
    assert checkpoint.newest(tmp_path / "run").name < f"epoch_{EPOCHS:03d}"
    with contextlib.ExitStack() as stack:
        port = free_port()
        codes = [each.wait(timeout=300) for each in [machine(stack, rank, port) for rank in range(2)]]
    assert codes == [0, 0], (tmp_path / "out0").read_text()
    assert "resuming from" in (tmp_path / "run" / "log.txt").read_text()
    assert final_weights(tmp_path / "run") == final_weights(undisturbed)


def free_port():
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_reaches_the_data_workers_in_vain(data, tmp_path):
    """As from timeout, systemd or a terminal; another micro-batch is needed before it can stop."""
    folder, out = tmp_path / "run", tmp_path / "out"
    args = [*flags(data, folder, "-num_workers", 2), "TRAIN.ACCUM_ITER", 3]
    with started(out, ROOT / "tools/main_single_gpu.py", *args) as process:
        wait_for(rf"epoch 2/{EPOCHS}  step 1/12", folder, process)
        workers = children(process)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=300) == 143, out.read_text()
    assert checkpoint.newest(folder) is not None
    assert len(workers) >= 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)


def configured(argv):
    return train._configure(train.parse_args(argv), distill=False)


def restart_words(tmp_path, *more):
    """What is run at first, and what after a failure; `more` are further flags."""
    argv = ["-cfg", "pit_digits", "-output", str(tmp_path / "run"), *more]
    command = train._again(argv, configured(argv))
    first = command(False)

    def resumed(words):
        return configured(words[2:]).MODEL.RESUME

    return first, lambda: resumed(command(True))


def test_a_restart_goes_on_from_what_the_run_itself_has_saved(tmp_path):
    (tmp_path / "run").mkdir()
    first, resume = restart_words(tmp_path, "-opts", "SEED", "3")
    assert "MODEL.RESUME" not in first
    assert resume() == "auto"  # even without a checkpoint: half of one must not stand in the way
    (tmp_path / "run" / "epoch_002.pdstate").touch()
    first, resume = restart_words(tmp_path, "-resume", "elsewhere/epoch_005")
    assert resume() == "elsewhere/epoch_005"
    (tmp_path / "run" / "epoch_006.pdstate").touch()
    assert resume() == "auto"
    _, resume = restart_words(tmp_path, "-opts", "MODEL.RESUME", "elsewhere/epoch_007")
    assert resume() == "elsewhere/epoch_007"
    _, resume = restart_words(tmp_path, "-eval", "-pretrained", "weights")
    assert resume() == ""


def test_another_launchers_processes_cannot_be_started_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    assert train.main(["-cfg", "pit_digits", "-output", str(tmp_path), "-max_restarts", "2"]) == 2
    assert "-max_restarts 0" in capsys.readouterr().err
