"""The model, and the queue before it: images of several requests are classified at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple, Optional, Protocol

import numpy as np

from paddlevit.calibration import Calibration
from paddlevit.serve.uploads import Limits


class Model(Protocol):
    """A classifier. `prepare` and `overlay` are called by several threads at a time, `classify` by one."""

    name: str
    precision: str
    num_classes: int
    explains: bool  # whether `classify` can make heat maps
    calibration: Calibration  # of its logits

    def prepare(self, data: bytes) -> np.ndarray:
        """Pixels uint8 [H, W, C] of an image file; all have the same shape. Raises UserError for a damaged file."""

    def classify(self, pixels: np.ndarray, explain: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Logits [N, num_classes] of images [N, H, W, C]; for those numbered in `explain`, a heat map [h, w] of
        the top-1 class, 0 to 1.
        """

    def overlay(self, data: bytes, heat: np.ndarray) -> bytes:
        """The heat map over the part of the image that the model sees, as a PNG file."""


# Logits [classes], and the heat map [h, w] of the top-1 class, if that was asked for.
Outcome = tuple[np.ndarray, Optional[np.ndarray]]


class _Job(NamedTuple):
    pixels: np.ndarray
    explain: bool
    outcome: asyncio.Future[Outcome]


class Batcher:
    """A queue before the model. It has no bound of its own: those who wait in it were admitted before.

    The model runs in one thread, so that it never sees two batches at a time. `observe` is told their sizes.
    """

    def __init__(self, model: Model, limits: Limits, *, observe: Callable[[int], None]) -> None:
        self._model = model
        self._limits = limits
        self._observe = observe
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model")

    async def classify(self, pixels: np.ndarray, *, explain: bool) -> Outcome:
        """What the model says of an image uint8 [H, W, C]; raises what it raises."""
        job = _Job(pixels, explain, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.outcome

    async def run(self) -> None:
        """Serve the queue until this is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                jobs = await self._next()
                try:
                    outcomes = await loop.run_in_executor(self._thread, self._run, jobs)
                    for job, outcome in zip(jobs, outcomes):
                        if not job.outcome.done():  # whoever asked may have gone
                            job.outcome.set_result(outcome)
                except Exception as error:
                    for job in jobs:
                        if not job.outcome.done():
                            job.outcome.set_exception(error)
        finally:
            self._thread.shutdown(wait=True)

    async def _next(self) -> list[_Job]:
        """The next batch: the oldest jobs, without those that nobody waits for any more."""
        jobs = [await self._jobs.get()]
        if self._jobs.qsize() + 1 < self._limits.max_batch:
            await asyncio.sleep(self._limits.max_wait)
        while len(jobs) < self._limits.max_batch and not self._jobs.empty():
            jobs.append(self._jobs.get_nowait())
        return [job for job in jobs if not job.outcome.done()]

    def _run(self, jobs: list[_Job]) -> list[Outcome]:
        if not jobs:
            return []
        self._observe(len(jobs))
        explain = [i for i, job in enumerate(jobs) if job.explain]
        logits, heats = self._model.classify(np.stack([job.pixels for job in jobs]), explain)
        return [(row, heats.get(i)) for i, row in enumerate(logits)]
