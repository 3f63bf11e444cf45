"""Batches that are read, decoded and stacked in the background."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Union

import numpy as np
import paddle
from paddle import Tensor

from paddlevit.data.bad_images import BadImages
from paddlevit.data.dataset import Drawn, ImageDataset, Sample, with_generators
from paddlevit.errors import UserError

logger = logging.getLogger(__name__)

_PREFETCH = 2  # batches per worker that are under way
_SECONDS_BETWEEN_LOOKS = 1.0
_SHARED_MEMORY = Path("/dev/shm")
_AFTER_QUEUES = -100  # multiprocessing empties its queues at -5

_Request = tuple[int, Union[list[Sample], Exception, None]]


class BatchStream:
    """Turns lists of samples into batches with paddle.io.DataLoader, in any number of runs, each of which may be left.

    Paddle's own way of starting a new epoch with the same workers loses track of the batches on their way when an
    epoch was left early, and an exception in a worker reaches the caller as a SystemError. Here the workers serve one
    endless row of requests. Each carries the number of its run, so that batches of an earlier run are told apart and
    dropped; after a run's last request come empty ones; an exception travels back as a value.
    """

    def __init__(
        self, dataset: ImageDataset, *, num_workers: int, shared_memory: bool = True, max_bad: int | None = None
    ) -> None:
        """`max_bad`: so many images that cannot be read are replaced by the next ones that can; None: the first one
        is an error."""
        self._requests = _Requests()
        self._bad = BadImages(max_bad)
        self._loader = paddle.io.DataLoader(
            _Batches(dataset, max_bad),
            batch_sampler=self._requests,
            collate_fn=_only,
            num_workers=num_workers,
            prefetch_factor=_PREFETCH,
            use_shared_memory=shared_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=functools.partial(_start_worker, parent=os.getpid()),
        )
        self._replies: Iterator[Any] | None = None
        self._workers: list[BaseProcess] = []

    def run(self, batches: Iterable[list[Sample]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 [N, H, W, C] and labels int64 [N] of each list of samples.

        Ends an earlier run that was left. Raises UserError where an image cannot be read.
        """
        number = self._requests.start(batches)
        if self._replies is None:
            self._start()
        while True:
            assert number == self._requests.number, "another run was started in the meantime"
            reply, images, labels = self._next()
            if reply.number != number:
                continue
            if reply.error is not None:
                raise reply.error
            self._bad.add(reply.bad)
            if reply.last:
                return
            yield images, labels

    def _start(self) -> None:
        others = multiprocessing.active_children()
        # Ctrl-C and others reach all processes, but training goes on to the end of its step: the workers inherit this.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._replies = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]

    def _next(self) -> Any:
        assert self._replies is not None
        try:
            return next(self._replies)
        except SystemError as error:
            self._kill_workers()
            raise RuntimeError(
                "a process that reads data has died, often as memory ran out: lower DATA.NUM_WORKERS or the batch size"
            ) from error

    def _kill_workers(self) -> None:
        """End all workers after one has died: one that waits for what the dead one held would never end by itself.

        Paddle raises a SystemError for each, wherever the program is when it ends: here that does no harm.
        """
        for worker in self._workers:
            with contextlib.suppress(SystemError):
                worker.kill()
            with contextlib.suppress(SystemError):
                worker.join()
            assert worker.pid is not None
            _free_shared_memory(worker.pid)


class _Requests:
    """The endless row of requests, as the batch sampler of a DataLoader."""

    def __init__(self) -> None:
        self.number = 0
        self._current: tuple[int, Iterator[list[Sample]]] = (0, iter(()))

    def start(self, batches: Iterable[list[Sample]]) -> int:
        """Go on with the requests of a new run, and return its number."""
        self.number += 1
        self._current = (self.number, iter(batches))  # both at once: the reader may be another thread
        return self.number

    def __iter__(self) -> Iterator[list[_Request]]:
        return self

    def __next__(self) -> list[_Request]:
        number, batches = self._current
        try:
            return [(number, next(batches, None))]
        except Exception as error:  # in Paddle's thread, which is here, it would be lost, and the caller wait for ever
            return [(number, _that_travels(error))]


@dataclass(frozen=True)
class _Reply:
    """What comes with the arrays of a batch; an image that was replaced is in `bad`, as the message that names it.

    No tuple: Paddle would take it apart, as if it were a batch too.
    """

    number: int
    last: bool = False
    error: Exception | None = None
    bad: Sequence[str] = ()


class _Batches(paddle.io.Dataset):
    """Answers requests. An answer always holds two arrays: Paddle takes one without for the end of the data."""

    def __init__(self, dataset: ImageDataset, max_bad: int | None) -> None:
        super().__init__()
        self._dataset = dataset
        self._max_bad = max_bad or 0

    def __getitem__(self, request: _Request) -> tuple[_Reply, np.ndarray, np.ndarray]:
        number, samples = request
        nothing = np.zeros(1, dtype=np.uint8)
        if samples is None or isinstance(samples, Exception):
            return _Reply(number, last=samples is None, error=samples), nothing, nothing
        try:
            bad: list[str] = []
            images, labels = zip(*(self._read(drawn, bad) for drawn in with_generators(samples)))
            return _Reply(number, bad=bad), np.stack(images), np.asarray(labels, dtype=np.int64)
        except Exception as error:
            return _Reply(number, error=_that_travels(error)), nothing, nothing

    def _read(self, drawn: Drawn, bad: list[str]) -> tuple[np.ndarray, np.int64]:
        """Pixels and label of an image, or of the next one that can be read."""
        index, rng = drawn
        for tried in range(self._max_bad + 1):
            try:
                return self._dataset[index, rng]
            except UserError as error:
                if tried == self._max_bad:
                    raise
                bad.append(str(error))
                index = (index + 1) % len(self._dataset)
        raise AssertionError("the last try returns or raises")

    def __len__(self) -> int:
        return sys.maxsize


def _that_travels(error: Exception) -> Exception:
    """The error to raise in the caller's process; what it was raised from may not survive the way."""
    if isinstance(error, UserError):
        return type(error)(str(error))
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return RuntimeError(f"while reading data:\n{''.join(lines)}")


def _only(batch: list[Any]) -> Any:
    """Collates nothing: the data set has already stacked the batch."""
    return batch[0]


def _start_worker(worker_id: int, *, parent: int) -> None:
    """What a worker does first."""
    gc.freeze()  # looking at what was inherited would copy it
    os.environ["OMP_NUM_THREADS"] = "1"
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    # A worker whose parent was killed ends by itself where it is busy, or else by this thread.
    multiprocessing.util.Finalize(None, _free_if_orphaned, args=(parent,), exitpriority=_AFTER_QUEUES)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent asks, or was killed: Paddle's worker would wait for requests for ever."""
    while os.getppid() == parent:
        asked = signal.sigtimedwait({signal.SIGTERM}, _SECONDS_BETWEEN_LOOKS)
        if asked is not None and asked.si_pid == parent:
            os._exit(0)
    time.sleep(_SECONDS_BETWEEN_LOOKS)  # it may still be answering the last requests
    _free_if_orphaned(parent)
    os._exit(1)


def _free_if_orphaned(parent: int) -> None:
    if os.getppid() != parent:
        _free_shared_memory(os.getpid())


def _free_shared_memory(worker: int) -> None:
    """Remove the answers of a worker that its parent has not taken, and never will: one of the two was killed."""
    for file in _SHARED_MEMORY.glob(f"paddle_{worker}_*"):
        file.unlink(missing_ok=True)


def shared_memory_holds(num_bytes: int) -> bool:
    """Whether /dev/shm has room for `num_bytes`, and 1 GiB in any case; workers that fill it up are killed."""
    try:
        state = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return False
    free = state.f_bavail * state.f_frsize
    if free >= max(num_bytes, 1 << 30):
        return True
    logger.warning(
        "%s has %.1f GiB free, too little for batches: workers send them through pipes, which is slower. "
        "In a container: docker run --shm-size 16g",
        _SHARED_MEMORY,
        free / 2**30,
    )
    return False
