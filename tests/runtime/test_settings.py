"""Stride kernels and memory: off for a process of ours and where a user asks for it; by a mere import only in time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import paddle
import pytest

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.runtime import settings

ROOT = Path(__file__).resolve().parents[2]
STRIDES = "FLAGS_use_stride_kernel"


@pytest.fixture
def paddle_first(monkeypatch):
    """As in a notebook that has imported Paddle before paddlevit."""
    before = paddle.get_flags(STRIDES)
    monkeypatch.delenv(STRIDES, raising=False)
    paddle.set_flags({STRIDES: True})
    yield monkeypatch
    paddle.set_flags(before)


def stride_kernels():
    return paddle.get_flags(STRIDES)[STRIDES]


def test_stride_kernels_are_turned_off_at_any_time(paddle_first):
    settings.turn_off_stride_kernels()
    assert not stride_kernels()
    assert paddle.randn([2, 3]).t().is_contiguous()


def test_who_asks_for_stride_kernels_keeps_them(paddle_first):
    paddle_first.setenv(STRIDES, "1")
    settings.turn_off_stride_kernels()
    assert stride_kernels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_model(get_config("pit_digits"))


def test_a_model_of_ones_own_is_warned_of_them(paddle_first):
    with pytest.warns(UserWarning, match="turn_off_stride_kernels") as said:
        build_model(get_config("pit_digits"))
    assert said[0].filename == __file__
    settings.turn_off_stride_kernels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_model(get_config("pit_digits"))


@pytest.mark.parametrize("order", ["import paddle, paddlevit", "import paddlevit, paddle"])
@pytest.mark.slow
def test_commands_turn_them_off_whatever_was_imported_first(order, monkeypatch):
    code = f"""
{order}
from paddlevit.commands.count_flops import main
assert main(["-cfg", "pit_digits"]) == 0
assert not paddle.get_flags("{STRIDES}")["{STRIDES}"]
"""
    monkeypatch.delenv(STRIDES, raising=False)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "stride" not in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
@pytest.mark.parametrize(("value", "expected"), [(None, [(-4, 0), (-1, -1)]), ("1", [(-4, 0), (-1, -1)]), ("0", [])])
def test_memory_is_kept_unless_the_environment_says_no(value, expected, monkeypatch):
    calls = []
    if value is None:
        monkeypatch.delenv("PADDLEVIT_KEEP_MEMORY", raising=False)
    else:
        monkeypatch.setenv("PADDLEVIT_KEEP_MEMORY", value)

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

    monkeypatch.setattr(settings.ctypes, "CDLL", lambda name: Library())
    settings.keep_memory()
    assert calls == expected


@pytest.mark.slow
def test_threads_beside_each_other_after_the_switch(paddle_first):
    """Four threads with 400 forward passes each, beside one that makes, keeps and uses slices and transposes."""
    settings.turn_off_stride_kernels()
    model = build_model(get_config("pit_digits"))
    model.eval()
    images = paddle.randn([1, 3, 32, 32])
    with paddle.no_grad():
        expected = model(images).numpy()
    errors, done = [], threading.Event()

    def guarded(work):
        try:
            with paddle.no_grad():
                work()
        except BaseException as error:
            errors.append(error)

    def forward():
        for _ in range(400):
            assert abs(model(images).numpy() - expected).max() < 1e-5

    def views():
        x = paddle.randn([64, 64])
        while not done.is_set():
            turned, cut = x.t(), x[:, 1:9]
            done.wait(0.0005)
            (turned + 1).sum()
            (cut + 1).sum()

    threads = [threading.Thread(target=guarded, args=[work]) for work in [forward] * 4]
    beside = threading.Thread(target=guarded, args=[views])
    beside.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    beside.join()
    assert not errors


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: sse2 fma avx2 avx512f\n", False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: sse2 fma avx2 rdseed\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: sse2 avx rdseed\n", False),
        ("CPU implementer\t: 0x41\nFeatures\t: fp asimd\n", False),
    ],
)
def test_which_processors_need_to_be_told_of_avx2(processor, expected, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"{processor}\n{processor}")
    assert settings.mkl_passes_over_avx2() == expected


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("", None), ("many", None)])
def test_other_engines_have_as_many_threads_as_the_user_said(given, threads, monkeypatch):
    monkeypatch.setattr(settings, "_ASKED_THREADS", given)
    assert settings.engine_threads() == (threads or len(os.sched_getaffinity(0)))


@pytest.mark.slow
def test_other_engines_have_not_the_threads_that_paddle_sets(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    code = "import paddlevit, paddle, paddlevit.runtime.settings as s; print(s.engine_threads())"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(out) == len(os.sched_getaffinity(0))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "serve"])
@pytest.mark.parametrize(("given", "threads"), [("3", "3"), (None, str(len(os.sched_getaffinity(0))))])
def test_prediction_and_serving_take_all_cores_before_paddle_is_imported(given, threads, command, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    code = f"""
import os, sys
from paddlevit.commands import {command} as room
def stop():
    early = "paddle" not in sys.modules
    use_all_cores()
    raise KeyError(os.environ["OMP_NUM_THREADS"], early)
use_all_cores, room.use_all_cores = room.use_all_cores, stop
try:
    room.main.__wrapped__(["-pretrained", "x", "y"][: 3 if room.__name__.endswith("predict") else 2])
except KeyError as told:
    print(*told.args)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [threads, "True"]
    assert "WISELY" not in done.stderr, "what Paddle says to those who take more threads than one"
