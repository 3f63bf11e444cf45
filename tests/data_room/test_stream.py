"""The stream of batches: any number of runs over the same workers, and what goes wrong in them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from paddlevit.data import bad_images
from paddlevit.data.stream import BatchStream
from paddlevit.errors import UserError


class Numbers:
    """A data set of numbers, some of which are a programming mistake or the end of the process."""

    def __getitem__(self, sample):
        number, _ = sample
        if number == 13:
            raise ZeroDivisionError("thirteen")
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((2, 2, 3), number, dtype=np.uint8), np.int64(number)


def requests(*numbers):
    return [[(number, None)] for number in numbers]


def received(stream, *numbers):
    return [labels.item() for _, labels in stream.run(requests(*numbers))]


@pytest.mark.parametrize(("num_workers", "shared_memory"), [(0, False), (2, True), (2, False)])
def test_mistakes_of_the_program_keep_their_traceback(num_workers, shared_memory):
    stream = BatchStream(Numbers(), num_workers=num_workers, shared_memory=shared_memory)
    assert received(stream, *range(9)) == list(range(9))
    with pytest.raises(RuntimeError, match="(?s)Traceback.*in __getitem__.*ZeroDivisionError: thirteen"):
        received(stream, 11, 12, 13, 14)
    assert received(stream, 5, 6, 7) == [5, 6, 7]
    assert received(stream) == []


def new_workers(before):
    return [child for child in multiprocessing.active_children() if child not in before]


def test_workers_ignore_ctrl_c_and_have_few_threads():
    before = multiprocessing.active_children()
    stream = BatchStream(Numbers(), num_workers=2)
    batches = stream.run(requests(*range(20, 40)))
    next(batches)
    workers = new_workers(before)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        status = Path(f"/proc/{worker.pid}/status").read_text()
        threads = int(status.split("Threads:")[1].split()[0])
        assert threads <= 4  # itself, its queue's, the one that watches its parent, and for some NumPys one of BLAS
    assert len(list(batches)) == 19
    assert new_workers(before) == workers


def test_a_killed_worker():
    stream = BatchStream(Numbers(), num_workers=2)
    with pytest.raises((RuntimeError, SystemError), match="a process that reads data has died|is killed by signal"):
        received(stream, *range(10), 99, *range(10))


class Gaps(Numbers):
    """A data set of which every third number cannot be read."""

    def __len__(self):
        return 30

    def __getitem__(self, sample):
        if sample[0] % 3 == 2:
            raise UserError(f"{sample[0]} is bad")
        return super().__getitem__(sample)


@pytest.mark.parametrize("num_workers", [0, 2])
class TestBadImages:
    def test_the_next_one_that_can_be_read_takes_its_place(self, num_workers, caplog, monkeypatch):
        monkeypatch.setattr(bad_images.logger, "propagate", False)
        bad_images.logger.addHandler(caplog.handler)
        stream = BatchStream(Gaps(), num_workers=num_workers, max_bad=4)
        for _ in range(2):
            assert received(stream, 0, 1, 2, 3, 5, 29) == [0, 1, 3, 3, 6, 0]
        bad_images.logger.removeHandler(caplog.handler)
        assert [record.getMessage() for record in caplog.records] == [
            f"image {i} of at most 4 is skipped: {number} is bad" for i, number in enumerate((2, 5, 29), 1)
        ]

    def test_too_many_are_an_error(self, num_workers):
        stream = BatchStream(Gaps(), num_workers=num_workers, max_bad=2)
        assert received(stream, 2, 5, 2, 5) == [3, 6, 3, 6]
        with pytest.raises(UserError, match=r"3 images cannot be read, allowed: 2 \(DATA.MAX_BAD\).*: 8 is bad"):
            received(stream, 8)

    def test_by_default_the_first_one_is(self, num_workers):
        with pytest.raises(UserError, match="^2 is bad$"):
            received(BatchStream(Gaps(), num_workers=num_workers), 0, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_in_the_order_of_images_is_raised(num_workers):
    """It happens in a thread of Paddle's."""

    def order():
        yield from requests(1, 2)
        raise ZeroDivisionError("no order")

    stream = BatchStream(Numbers(), num_workers=num_workers)
    batches = stream.run(order())
    assert [next(batches)[1].item() for _ in range(2)] == [1, 2]
    with pytest.raises(RuntimeError, match="(?s)Traceback.*in order.*ZeroDivisionError: no order"):
        next(batches)
    assert received(stream, 5, 6) == [5, 6]


def test_killed_workers_leave_nothing_in_shared_memory():
    before = multiprocessing.active_children()
    stream = BatchStream(Numbers(), num_workers=2)
    batches = stream.run(requests(*range(14, 30)))
    next(batches)
    pids = [worker.pid for worker in new_workers(before)]
    left = [Path(f"/dev/shm/paddle_{pid}_left") for pid in pids]
    for file in left:
        file.write_bytes(b"an answer")
    with pytest.raises((RuntimeError, SystemError)):
        received(stream, *range(14, 20), 99, *range(14, 20))
        stream._kill_workers()
    stream._kill_workers()
    assert not any(file.exists() for file in left)
