"""Which images are in which batch: pure functions of seed, epoch and step, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paddlevit.data.dataset import Sample
from paddlevit.errors import UserError
from paddlevit.runtime.seeding import ORDER, generator


def train_order(num_samples: int, seed: int, *, epoch: int, repeats: int = 1) -> np.ndarray:
    """Indices int64 [num_samples] of the images of an epoch, shuffled.

    With `repeats` above 1 each chosen image stands that often, one copy after the other, and an epoch keeps its length,
    so it has num_samples / repeats different images (repeated augmentation, Hoffer et al. 2020; Berman et al. 2019).
    """
    order = generator((seed, epoch), ORDER).permutation(num_samples)
    return order if repeats == 1 else np.repeat(order[: -(-num_samples // repeats)], repeats)[:num_samples]


@dataclass
class TrainBatchSampler:
    """Batches of one process of several that train together.

    A step's images are the same for every number of processes with the same number of images per step. Those left over
    at the end of an epoch are dropped. Raises UserError where there are too few images for a step.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        if not len(self):
            raise UserError(
                f"{self.num_samples} training images are fewer than a step takes, {self.batch_size} x "
                f"{self.world_size} processes = {self.batch_size * self.world_size}: lower DATA.BATCH_SIZE "
                "(-batch_size), or train on fewer processes"
            )

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.num_samples // (self.batch_size * self.world_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Sample]]:
        """This process's batches of an epoch, from `first_step` on."""
        order = train_order(self.num_samples, self.seed, epoch=epoch, repeats=self.repeats)
        images_per_step = self.batch_size * self.world_size
        for first in range(first_step * images_per_step, len(self) * images_per_step, images_per_step):
            if self.repeats > 1:  # copies of an image stand one after the other: deal them to different processes
                places = range(first + self.rank, first + images_per_step, self.world_size)
            else:
                places = range(first + self.rank * self.batch_size, first + (self.rank + 1) * self.batch_size)
            yield [(int(order[i]), (self.seed, epoch, i)) for i in places]


class EvalBatchSampler:
    """Batches that cover every image once over all processes, nothing added; a process may have none."""

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = np.arange(rank, num_samples, world_size)
        self.batch_size = batch_size
        self.common_batches = -(-(num_samples // world_size) // batch_size)  # that every process has

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Sample]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [(int(i), None) for i in self.indices[first : first + self.batch_size]]
