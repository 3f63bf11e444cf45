"""Random numbers that depend on a key, such as (seed, epoch, step, rank), and on nothing else."""

from __future__ import annotations

import numpy as np

Key = tuple[int, ...]

# What draws from the same keys has a stream of its own each, so that their numbers are independent.
ERASING, MIXUP, SAMPLES, ORDER = 1, 2, 3, 4


def generator(key: Key, stream: int) -> np.random.Generator:
    """A new generator: the same key and stream give the same numbers in every process and at every time."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=(stream,))))
