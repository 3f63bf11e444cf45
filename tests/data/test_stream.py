"""The stream of batches: any number of runs over the same workers, and what goes wrong in them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddlevit.data import loader
from paddlevit.data.dataset import ImageDataset
from paddlevit.data.loader import BatchStream
from paddlevit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 2, 2, 3)


class Numbers(ImageDataset):
    """A data set of numbers, some of which are a programming mistake or the end of the process."""

    def __init__(self):
        self.source = SimpleNamespace(label=int)

    def pixels(self, number, rng=None):
        if number == 13:
            raise ZeroDivisionError("thirteen")
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((2, 2, 3), number, dtype=np.uint8)


def requests(*numbers):
    return [[(number, None)] for number in numbers]


def batches(stream, *numbers):
    """(step, value of the pixels, label) of each batch."""
    for prepared, labels in stream.run(requests(*numbers), lambda step, pixels: (step, pixels.copy())):
        step, pixels = prepared
        assert pixels.shape == SHAPE and (pixels == pixels[0, 0, 0, 0]).all()
        yield step, int(pixels[0, 0, 0, 0]), labels.item()


def received(stream, *numbers):
    found = list(batches(stream, *numbers))
    assert [step for step, _, _ in found] == list(range(len(numbers)))
    assert [value for _, value, _ in found] == [label for _, _, label in found]
    return [label for _, _, label in found]


def new_workers(before):
    return [child for child in multiprocessing.active_children() if child not in before]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_mistakes_of_the_program_keep_their_traceback(num_workers):
    stream = BatchStream(Numbers(), SHAPE, num_workers=num_workers)
    assert received(stream, *range(12)) == list(range(12))
    with pytest.raises(RuntimeError, match="(?s)Traceback.*in pixels.*ZeroDivisionError: thirteen"):
        received(stream, 11, 12, 13, 14)
    assert received(stream, 5, 6, 7) == [5, 6, 7]
    assert received(stream) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_may_be_smaller_than_a_full_one(num_workers):
    stream = BatchStream(Numbers(), (5, *SHAPE[1:]), num_workers=num_workers)
    ((pixels, labels),) = stream.run([[(3, None), (4, None)]], lambda step, pixels: pixels.copy())
    assert pixels[:, 0, 0, 0].tolist() == labels.tolist() == [3, 4]


def test_workers_ignore_ctrl_c_and_termination_and_have_few_threads():
    before = multiprocessing.active_children()
    stream = BatchStream(Numbers(), SHAPE, num_workers=2)
    run = batches(stream, *range(20, 40))
    next(run)
    workers = new_workers(before)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
        status = Path(f"/proc/{worker.pid}/status").read_text()
        assert int(status.split("Threads:")[1].split()[0]) <= 2  # itself, and for some NumPys one of BLAS
    assert len(list(run)) == 19
    assert received(stream, 5, 6) == [5, 6]
    assert new_workers(before) == workers, "they stay for the next run"


def test_workers_end_with_the_stream():
    before = multiprocessing.active_children()
    stream = BatchStream(Numbers(), SHAPE, num_workers=2)
    run = batches(stream, *range(9))
    next(run)
    assert len(new_workers(before)) == 2
    del run, stream
    assert not new_workers(before)


def test_a_killed_worker():
    stream = BatchStream(Numbers(), SHAPE, num_workers=2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a data worker has died, often for lack of memory"):
            received(stream, *range(10), 99, *range(10))


class Gaps(Numbers):
    """A data set of which every third number cannot be read."""

    def __len__(self):
        return 30

    def pixels(self, number, rng=None):
        if number % 3 == 2:
            raise UserError(f"{number} is bad")
        return super().pixels(number)


@pytest.mark.parametrize("num_workers", [0, 2])
class TestBadImages:
    def test_the_next_one_that_can_be_read_takes_its_place(self, num_workers, caplog, monkeypatch):
        monkeypatch.setattr(loader.logger, "propagate", False)
        loader.logger.addHandler(caplog.handler)
        stream = BatchStream(Gaps(), SHAPE, num_workers=num_workers, max_bad=4)
        for _ in range(2):
            assert received(stream, 0, 1, 2, 3, 5, 29) == [0, 1, 3, 3, 6, 0]
        loader.logger.removeHandler(caplog.handler)
        assert [record.getMessage() for record in caplog.records] == [
            f"skipping unreadable image ({i} of max. 4): {number} is bad" for i, number in enumerate((2, 5, 29), 1)
        ]

    def test_too_many_are_an_error(self, num_workers):
        stream = BatchStream(Gaps(), SHAPE, num_workers=num_workers, max_bad=2)
        assert received(stream, 2, 5, 2, 5) == [3, 6, 3, 6]
        with pytest.raises(UserError, match=r"3 images cannot be read, allowed: 2 \(DATA.MAX_BAD\).*: 8 is bad"):
            received(stream, 8)

    def test_by_default_the_first_one_is(self, num_workers):
        with pytest.raises(UserError, match="^2 is bad; "):
            received(BatchStream(Gaps(), SHAPE, num_workers=num_workers), 0, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_in_the_order_of_images_is_raised(num_workers):
    def order():
        yield from requests(*range(7))
        raise ZeroDivisionError("no order")

    stream = BatchStream(Numbers(), SHAPE, num_workers=num_workers)
    with pytest.raises(ZeroDivisionError, match="no order"):
        list(stream.run(order(), lambda step, pixels: pixels))
    assert received(stream, 5, 6) == [5, 6]


class TestOnAGpu:
    """A thread is one batch ahead there."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")
        monkeypatch.setattr(paddle, "set_device", lambda name: name)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_the_same_batches(self, num_workers):
        stream = BatchStream(Numbers(), SHAPE, num_workers=num_workers)
        for _ in range(2):
            assert received(stream, *range(9)) == list(range(9))
        with pytest.raises(RuntimeError, match="ZeroDivisionError: thirteen"):
            received(stream, 12, 13)
        left = batches(stream, *range(9))
        next(left)
        assert received(stream, 5, 6) == [5, 6]
        with pytest.raises(AssertionError, match="another run"):
            list(left)

    def test_the_next_batch_is_prepared_while_one_is_used(self):
        prepared = []
        stream = BatchStream(Numbers(), SHAPE, num_workers=1)
        run = stream.run(requests(*range(5)), lambda step, pixels: prepared.append(step))
        next(run)
        deadline = time.monotonic() + 60
        while prepared != [0, 1] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert prepared == [0, 1]


PROGRAM = """
    import multiprocessing, os, signal, sys
    sys.path[:0] = [{root!r}, {here!r}]
    from test_stream import SHAPE, BatchStream, Numbers, batches
    streams = [BatchStream(Numbers(), SHAPE, num_workers=2) for _ in range(2)]
    runs = [batches(stream, *range(100, 200)) for stream in streams]
    for run in runs:
        next(run)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("pass", 0),
        ("sys.exit(3)", 3),
    ],
)
@pytest.mark.slow
def test_workers_end_with_the_program_and_leave_nothing(end, code):
    before = set(os.listdir("/dev/shm"))
    script = textwrap.dedent(PROGRAM.format(root=str(ROOT), here=str(Path(__file__).parent), end=end))
    # The pipe is only closed when the workers, which have inherited it, have ended as well.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300)
    pids = done.stdout.split()
    assert (done.returncode, len(pids)) == (code, 4)
    assert b"Error" not in done.stderr and b"Traceback" not in done.stderr
    assert not [name for name in set(os.listdir("/dev/shm")) - before for pid in pids if str(int(pid)) in name]
