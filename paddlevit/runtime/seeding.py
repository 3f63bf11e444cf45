"""Random numbers that depend on a key, such as (seed, epoch, step, rank), and on nothing else.

A resumed run draws what it would have drawn: no generator's state needs saving.
"""

from __future__ import annotations

import numpy as np
import paddle

from paddlevit.runtime.process import rank

Key = tuple[int, ...]

# What draws from the same keys has a stream of its own each, so that their numbers are independent.
ERASING, MIXUP, SAMPLES, ORDER = 1, 2, 3, 4


def generator(key: Key, stream: int) -> np.random.Generator:
    """A new generator: the same key and stream give the same numbers in every process and at every time."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=(stream,))))


def seed_step(seed: int, epoch: int, step: int) -> Key:
    """Seed Paddle's generator for a training step of this process; returns the key for what NumPy draws in it."""
    key = (seed, epoch, step, rank())
    paddle.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
    return key
