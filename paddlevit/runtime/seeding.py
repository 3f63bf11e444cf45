"""Random numbers are functions of (seed, epoch, step or image, rank): a resumed run draws what it would have drawn."""

from __future__ import annotations

import numpy as np
import paddle

from paddlevit.runtime.process import rank

Key = tuple[int, ...]


def seed_step(seed: int, epoch: int, step: int) -> Key:
    """Seed Paddle's generator for a training step of this process; returns the key for what NumPy draws in it."""
    key = (seed, epoch, step, rank())
    paddle.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
    return key
