"""Batches of images: which images are in which, read by worker processes, normalized on the device."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
import math
import mmap
import multiprocessing
import multiprocessing.util
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor
from paddle.utils.dlpack import from_dlpack
from PIL import Image

from paddlevit.data.dataset import ImageDataset, Reply, Sample
from paddlevit.data.decode import thumbnail
from paddlevit.data.mixup import Images
from paddlevit.errors import UserError
from paddlevit.runtime.seeding import ORDER, Key, generator

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # images float32 [N, C, H, W] and labels int64 [N]
Prepare = Callable[[int, np.ndarray], Tensor]

_AHEAD = 2  # batches that each worker reads ahead of the one in use


@dataclass
class Normalize:
    """Pixels to what a model sees: (x / 255 - mean) / std per channel, for mean and std in 0 to 1."""

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, pixels: np.ndarray, erase: Callable[[Any], Any] = lambda images: images) -> Tensor:
        """float32 [N, C, H, W] on the current device, of uint8 [N, H, W, C].

        `erase` writes into them while they are an array, on a CPU, where Paddle takes ten times as long.
        """
        planes = pixels.transpose(0, 3, 1, 2)
        if paddle.get_device() == "cpu":
            return from_dlpack(erase(self._on_cpu(planes)))
        images = paddle.to_tensor(planes)
        # Channel by channel with plain numbers: broadcasting [1, C, 1, 1] takes longer.
        channels = zip(self.mean, self.std)
        scaled = [(images[:, c].astype("float32") - 255.0 * m) / (255.0 * s) for c, (m, s) in enumerate(channels)]
        return erase(paddle.stack(scaled, axis=1))

    def _on_cpu(self, planes: np.ndarray) -> np.ndarray:
        """An image at a time, which stays in the processor's cache: a third of the time of Paddle's operators."""
        images = np.empty(planes.shape, dtype=np.float32)
        scale = np.array([1.0 / (255.0 * s) for s in self.std], dtype=np.float32)[:, None, None]
        offset = np.array([m / s for m, s in zip(self.mean, self.std)], dtype=np.float32)[:, None, None]
        for image, out in zip(planes, images):
            out[...] = image
            out *= scale
            out -= offset
        return images


def train_order(
    num_samples: int, seed: int, *, epoch: int, repeats: int = 1, shares: np.ndarray | None = None
) -> np.ndarray:
    """Indices int64 [num_samples] of the images of an epoch, shuffled.

    With `repeats` above 1 each chosen image stands that often, one copy after the other, and there are fewer different
    ones (repeated augmentation, Hoffer et al. 2020; Berman et al. 2019). `shares`, float64 [num_samples] with the sum
    num_samples, say how often an image stands there on average: each epoch has that number, rounded down or up at
    random (systematic resampling).
    """
    random = generator((seed, epoch), ORDER)
    order = random.permutation(num_samples)
    if shares is not None:
        ends = np.floor(np.cumsum(shares[order])[:-1] + random.random()).astype("int64")
        order = random.permutation(np.repeat(order, np.diff(ends, prepend=0, append=num_samples)))
    return order if repeats == 1 else np.repeat(order[: -(-num_samples // repeats)], repeats)[:num_samples]


def balanced_shares(labels: np.ndarray, balance: float) -> np.ndarray:
    """How often each image stands in an epoch, float64 [N] with the sum N: equally often with `balance` 0, its class as
    often as any other with 1.
    """
    shares = np.bincount(labels)[labels].astype("float64") ** -balance
    return shares * (len(labels) / shares.sum())


@dataclass
class TrainBatchSampler:
    """Batches of one process of several that train together. A step's images are the same for every number of processes
    with the same number of images per step; those left over at the end of an epoch are dropped.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    repeats: int = 1
    shares: np.ndarray | None = None  # see train_order

    def __post_init__(self) -> None:
        if not len(self):
            step = f"{self.batch_size} x {self.world_size} processes = {self.batch_size * self.world_size}"
            images = f"{self.num_samples} training images are fewer than a step takes"
            raise UserError(f"{images}, {step}: lower -batch_size (DATA.BATCH_SIZE) or -nprocs")

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.num_samples // (self.batch_size * self.world_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Sample]]:
        """This process's batches of an epoch, from `first_step` on."""
        order = train_order(self.num_samples, self.seed, epoch=epoch, repeats=self.repeats, shares=self.shares)
        images_per_step = self.batch_size * self.world_size
        for first in range(first_step * images_per_step, len(self) * images_per_step, images_per_step):
            if self.repeats > 1:  # copies of an image stand one after the other: deal them to different processes
                places = range(first + self.rank, first + images_per_step, self.world_size)
            else:
                places = range(first + self.rank * self.batch_size, first + (self.rank + 1) * self.batch_size)
            yield [(int(order[i]), (self.seed, epoch, i)) for i in places]


class _Loader:
    def __init__(self, stream: BatchStream, normalize: Normalize) -> None:
        self.dataset, self.source = stream.dataset, stream.dataset.source
        self.class_names = self.source.class_names
        self.num_images = len(self.source)  # of all processes together
        self.normalize = normalize
        self._stream = stream


class TrainLoader(_Loader):
    """Batches of augmented images of one process of several, endlessly reproducible: a batch depends on seed, epoch and
    step, not on the number of workers, nor on what was read before.
    """

    def __init__(
        self, stream: BatchStream, sampler: TrainBatchSampler, *, normalize: Normalize, erase: Callable[..., Images]
    ) -> None:
        """`erase`: (images, key) -> images."""
        super().__init__(stream, normalize)
        self.batch_size = sampler.batch_size  # per process and step
        self.steps_per_epoch = len(sampler)  # the batches of all processes at once are one step
        self._erase, self._sampler = erase, sampler

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batch of each step of an epoch, counted from 0, from `first_step`. An epoch may be left at any step; the
        next one that is asked for ends it. Raises UserError where an image cannot be read.
        """
        seed, rank = self._sampler.seed, self._sampler.rank
        batches = self._sampler.batches(epoch, first_step)
        return self._stream.run(
            batches, lambda step, pixels: self.prepare(pixels, (seed, epoch, first_step + step, rank))
        )

    def prepare(self, pixels: np.ndarray, key: Key) -> Tensor:
        """float32 [N, C, H, W] on the current device, normalized and erased, of uint8 [N, H, W, C]."""
        return self.normalize(pixels, functools.partial(self._erase, key=key))

    def names(self, epoch: int, step: int) -> list[str]:
        """Paths of the images of a batch of this process, as if all could be read."""
        return [self.source.name(index) for index, _ in next(self._sampler.batches(epoch, step))]

    def pictures(self, images: Tensor) -> list[bytes]:
        """Normalised images [N, C, H, W] as PNG or JPEG files, made small, with grey or the first three channels."""
        mean, std = (np.asarray(each, "float32")[:, None, None] for each in (self.normalize.mean, self.normalize.std))
        pixels = np.clip(255 * (images.numpy() * std + mean), 0, 255).round().astype("uint8").transpose(0, 2, 3, 1)
        pixels = pixels[..., :3] if pixels.shape[3] >= 3 else pixels[..., 0]
        return [thumbnail(Image.fromarray(each)) for each in pixels]


class EvalLoader(_Loader):
    """Batches of this process's share of the images: those of all processes together are every image once."""

    def __init__(
        self, stream: BatchStream, batch_size: int, *, normalize: Normalize, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(stream, normalize)
        self.indices = np.arange(rank, self.num_images, world_size)  # of this process's images, batch by batch
        self.common_batches = -(-(self.num_images // world_size) // batch_size)  # that every process has
        self._firsts = range(0, len(self.indices), batch_size)

    def __len__(self) -> int:
        """Batches of this process; there may be none."""
        return len(self._firsts)

    def __iter__(self) -> Iterator[Batch]:
        parts = (self.indices[first : first + self._firsts.step] for first in self._firsts)
        batches: Iterator[list[Sample]] = ([(int(i), None) for i in part] for part in parts)
        return self._stream.run(batches, lambda step, pixels: self.normalize(pixels))

    def thumbnail(self, i: int) -> bytes:
        """The i-th image of all, made small, as a PNG or JPEG file."""
        return thumbnail(self.source.image(i))


class BatchStream:
    """Reads batches of a data set in order, in any number of runs, each of which may be left early.

    With n workers, each reads every n-th batch. They start with the first run and end with this object or the program.
    """

    def __init__(
        self, dataset: ImageDataset, batch_shape: Sequence[int], *, num_workers: int = 0, max_bad: int = 0
    ) -> None:
        """`batch_shape`: [N, H, W, C] of a full batch. `max_bad`: how many unreadable images are replaced by the next
        readable one each; the next one is an error.
        """
        self.dataset = dataset
        self._num_workers = num_workers
        self._max_bad = max_bad
        self._bad: set[str] = set()
        self._workers: list[_Worker] = []
        self._thread: ThreadPoolExecutor | None = None
        self._run = 0
        num_slots = _AHEAD * num_workers + 1  # one for each batch that is under way, and one for that in use
        memory = mmap.mmap(-1, num_slots * math.prod(batch_shape))  # processes that are forked share it
        size, height, width, channels = batch_shape
        planes = np.frombuffer(memory, np.uint8).reshape(num_slots, size, channels, height, width)
        self._slots = planes.transpose(0, 1, 3, 4, 2)  # as models want them: normalizing takes half the time

    def run(self, batches: Iterable[list[Sample]], prepare: Prepare) -> Iterator[Batch]:
        """prepare(step, pixels), for steps from 0 and pixels uint8 [N, H, W, C] that are valid only during the call,
        and the labels, of each list of samples. Ends an earlier run.
        """
        self._run += 1
        while len(self._workers) < self._num_workers:  # here, and not when the first batch is asked for, in a thread
            worker = _Worker(functools.partial(_work, self.dataset, self._slots, self._max_bad))
            self._workers.append(worker)
            multiprocessing.util.Finalize(self, _kill, args=(worker.process,), exitpriority=0)
        prepared = self._prepared(self._run, batches, prepare)
        return prepared if paddle.get_device() == "cpu" else self._ahead(prepared)

    def _prepared(self, run: int, batches: Iterable[list[Sample]], prepare: Prepare) -> Iterator[Batch]:
        slot = self._slots[0]
        here = ((self.dataset.read(samples, slot, max_bad=self._max_bad), slot) for samples in batches)
        replies = self._by_workers(batches) if self._workers else here
        for step, (reply, pixels) in enumerate(replies):
            if reply.error is not None:
                raise reply.error
            self._count(reply.bad)
            yield prepare(step, pixels[: len(reply.labels)]), paddle.to_tensor(reply.labels, "int64")
            assert run == self._run, "another run was started in the meantime"

    def _by_workers(self, batches: Iterable[list[Sample]]) -> Iterator[tuple[Reply, np.ndarray]]:
        for worker in self._workers:
            while worker.pending:
                worker.answer()  # of a run that was left
        asked: deque[tuple[_Worker, int]] = deque()
        turns = zip(itertools.cycle(self._workers), itertools.cycle(range(len(self._slots))))
        for (worker, slot), samples in zip(turns, batches):
            worker.ask(slot, samples)
            asked.append((worker, slot))
            if len(asked) == len(self._slots):
                worker, slot = asked.popleft()
                yield worker.answer(), self._slots[slot]
        for worker, slot in asked:
            yield worker.answer(), self._slots[slot]

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A copy to a GPU waits for what the GPU does: a thread prepares the next batch while one is used."""
        if self._thread is None:  # one for all runs, so that a new one waits for what is left of the one before
            self._thread = ThreadPoolExecutor(1, initializer=paddle.set_device, initargs=(paddle.get_device(),))
        coming = self._thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = self._thread.submit(next, batches, None)
            yield batch

    def _count(self, bad: Iterable[str]) -> None:
        """Log each image that was replaced once. Raises UserError where there are more than may be."""
        for message in bad:
            if message in self._bad:
                continue
            self._bad.add(message)
            logger.warning("skipping unreadable image (%d of max. %s): %s", len(self._bad), self._max_bad, message)
            if len(self._bad) > self._max_bad:
                too_many = f"{len(self._bad)} images cannot be read, allowed: {self._max_bad} (DATA.MAX_BAD)"
                raise UserError(f"{too_many}. The last one: {message}. `paddlevit prepare check` lists all")


class _Worker:
    """A process that reads batches into memory that it shares with this one.

    Paddle's DataLoader (3.3.1) keeps batches in files of /dev/shm, which a container may not have room for and a killed
    process leaves behind, copies each several times, and turns a worker's error into a SystemError.
    """

    def __init__(self, work: Callable[[Connection, Connection], None]) -> None:
        fork = multiprocessing.get_context("fork")  # nothing there touches Paddle or a GPU
        self._pipe, theirs = fork.Pipe()
        self.pending = 0  # requests without an answer
        self.process = fork.Process(target=work, args=(theirs, self._pipe))
        # Ctrl-C and others reach all processes, but training goes on to the end of its step: workers inherit this.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def ask(self, slot: int, samples: Sequence[Sample]) -> None:
        with contextlib.suppress(OSError):  # where it has died `answer` will say so
            self._pipe.send((slot, samples))
        self.pending += 1

    def answer(self) -> Reply:
        """The answer to the oldest request."""
        try:
            reply = self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError(
                "a data worker has died, often for lack of memory: lower DATA.NUM_WORKERS or the batch size"
            ) from None
        self.pending -= 1
        return reply


def _work(dataset: ImageDataset, slots: np.ndarray, max_bad: int, pipe: Connection, parents: Connection) -> None:
    """Answer requests until the other end of the pipe is closed. Workers that were started later hold that end too, and
    the last one ends first.
    """
    parents.close()
    gc.freeze()  # looking at what was inherited would copy it
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    with contextlib.suppress(EOFError, OSError):
        while True:
            slot, samples = pipe.recv()
            pipe.send(dataset.read(samples, slots[slot], max_bad=max_bad))


def _kill(worker: Any) -> None:
    worker.kill()
    worker.join()
