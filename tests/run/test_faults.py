"""Runs that are ended again and again, while they train, save and evaluate, have the weights of a quiet run at last.

FAULT_KILLS is how often; 50 take a quarter of an hour.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import image_folder

from paddlevit.commands.train import main
from paddlevit.training import checkpoint
from paddlevit.weights import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("FAULT_KILLS", "3"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), classes=4, train=24, val=40)


def words(data, output):
    options = ["TRAIN.NUM_EPOCHS", "4", "TRAIN.WARMUP_EPOCHS", "1.0", "REPORT_FREQ", "1", "KEEP_LAST", "2"]
    options += ["DATA.BATCH_SIZE_EVAL", "4"]
    args = ["-cfg", "pit_digits", "-data_path", data, "-output", output, "-batch_size", 8, "-resume", "auto"]
    return [str(word) for word in (*args, "-opts", *options)]


def start(data, output):
    command = [sys.executable, ROOT / "tools" / "main_single_gpu.py", *words(data, output)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(data, output):
    assert main(words(data, output), nprocs=1) == 0


def saving(folder):
    return next(folder.glob("*.part"), None) is not None


def evaluating(folder):
    path = folder / "metrics.jsonl"
    return path.is_file() and '"step": 3,' in path.read_text().rpartition('{"phase"')[2]


def kill_while(busy, process, folder, rng):
    """Kill -9 in the n-th moment of that kind, n being random; whether the run was still alive."""
    for _ in range(rng.randint(1, 2)):
        for wanted in (False, True):
            while process.poll() is None and busy(folder) != wanted:
                time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def kill_at_any_moment(process, rng):
    time.sleep(rng.uniform(2.0, 8.0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def kill_beside_a_rival(process, data, folder):
    """Another run that is started in the folder is refused, and changes nothing there; then the first one is killed."""
    while process.poll() is None and not (folder / "config.yaml").is_file():
        time.sleep(0.0005)
    rival = start(data, folder)
    out, _ = rival.communicate(timeout=300)
    alive = process.poll() is None
    assert rival.returncode == 2 and "in use by another run" in out or not alive, out
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def end_by_a_bad_image(process, data, folder, rng):
    """An image that is bad from some moment on ends the run, which saves; it is good again for the next one."""
    while process.poll() is None and not (folder / "config.yaml").is_file():
        time.sleep(0.0005)
    path = rng.choice(sorted(data.rglob("*.png")))
    good = path.read_bytes()
    path.write_bytes(b"no image")
    try:
        process.communicate(timeout=300)
    finally:
        path.write_bytes(good)
    assert process.returncode in (0, 2)
    return process.returncode == 2


@pytest.mark.slow
def test_killed_again_and_again(data, tmp_path):
    finish(data, tmp_path / "quiet")
    expected = read_state_dict(tmp_path / "quiet" / "epoch_004.pdparams")
    rng, ends = random.Random(0), {"bad image": 0, "saving": 0, "rival": 0, "evaluating": 0, "any": 0}
    while sum(ends.values()) < KILLS:
        folder = tmp_path / f"run_{sum(ends.values())}"
        for kind in list(ends)[:KILLS]:
            process = start(data, folder)
            if kind == "any":
                ended = kill_at_any_moment(process, rng)
            elif kind == "rival":
                ended = kill_beside_a_rival(process, data, folder)
            elif kind == "bad image":
                ended = end_by_a_bad_image(process, data, folder, rng)
            else:
                ended = kill_while({"saving": saving, "evaluating": evaluating}[kind], process, folder, rng)
            ends[kind] += ended
            present = list(folder.glob("epoch_*.pdstate"))
            assert not present or checkpoint.newest(folder) == max(present, key=lambda path: path.stem)
        finish(data, folder)
        found = read_state_dict(folder / "epoch_004.pdparams")
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected), ends
    print(ends)
