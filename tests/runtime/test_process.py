"""A process and its device: how many there are, and which GPU is whose."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace

import paddle
import paddle.distributed as dist
import pytest
from paddle import nn

from paddlevit.errors import UserError
from paddlevit.runtime import process


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(process.paddle.device.cuda, "device_count", lambda: 4)
    assert [process.process_count(asked, "cpu") for asked in (None, 1, 3)] == [1, 1, 3]
    assert [process.process_count(asked, "gpu") for asked in (None, 1, 4)] == [4, 1, 4]
    with pytest.raises(UserError, match="-nprocs 5: only 4 GPUs"):
        process.process_count(5, "gpu")


def test_a_process_takes_the_gpu_of_its_machine(monkeypatch):
    """The sixth process of two machines with four GPUs each: its rank, Paddle's local_rank too, is no GPU's number."""
    chosen = []
    monkeypatch.setattr(dist, "ParallelEnv", lambda: SimpleNamespace(device_id=1, local_rank=5, rank=5))
    monkeypatch.setattr(dist, "init_parallel_env", lambda: None)
    monkeypatch.setattr(process, "choose_device", lambda name: "gpu")
    monkeypatch.setattr(paddle, "set_device", chosen.append)
    process.setup("gpu", 0)
    assert chosen == ["gpu:1"]


def test_batch_norm_trains_without_a_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        process.setup("cpu", 0)
        nn.BatchNorm2D(2)(paddle.rand([2, 2, 3, 3]))
    assert not caught


@pytest.mark.slow
def test_what_only_unix_has_is_not_needed_to_import_and_read(tmp_path):
    """As on Windows, as far as that can be seen here: no fcntl, no resource, two signals, no os.pread."""
    hide = (
        "import os, signal, sys\n"
        "sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'pwd', 'grp', 'termios']))\n"
        "for name in ('SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU', 'SIGKILL'): delattr(signal, name)\n"
        "del os.pread, os.sched_getaffinity\n"
        "import paddlevit, paddlevit.commands.train, paddlevit.commands.serve, paddlevit.run.train\n"
        "from paddlevit.config import get_config\n"
        "from paddlevit.run.folder import open_folder\n"
        "from paddlevit.runtime.process import peak_memory\n"
        f"with open_folder(get_config('pit_digits', ['OUTPUT', {str(tmp_path)!r}])): print(peak_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "0\n", done.stderr
    assert "cannot be locked (" in done.stderr
