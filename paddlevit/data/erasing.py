"""Random erasing of rectangles, on a batch of normalised images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np
import paddle
from paddle import Tensor
from yacs.config import CfgNode

from paddlevit.runtime.seeding import ERASING, Key, generator

_Rectangle = tuple[int, int, int, int]  # top, left, height, width
_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
_TRIES = 10
_POOL_SIZE = 1 << 20


@dataclass
class RandomErasing:
    """Overwrites rectangles of some images of a batch (Zhong et al. 2020, algorithm 1).

    An image is chosen with probability `prob` and loses `count` rectangles, each of which has 2 % to 1/3 of the image's
    area divided by `count` (the recipes' bounds; the paper goes up to 40 %). Height / width is log-uniform in
    [0.3, 1 / 0.3] (uniform in the paper, which favours high rectangles), the place uniform among those that fit; after
    ten sizes that do not fit, the rectangle is left out.

    `mode` says what is written: 'pixel', a standard normal number per value; 'rand', one normal color per rectangle;
    'const', zero, which is the mean color of normalised images.
    """

    prob: float
    mode: str = "pixel"
    count: int = 1
    _pool: Tensor | None = None

    @paddle.no_grad()
    def __call__(self, images: Tensor, key: Key) -> Tensor:
        """`images` [N, C, H, W], written in place; the same key erases the same rectangles with the same values.

        Copying a batch would cost more than all the rest, and only rectangles are touched. No host sync.
        """
        num, channels, height, width = images.shape
        rng = generator(key, ERASING)
        for index in np.flatnonzero(rng.random(num) < self.prob).tolist():
            for top, left, h, w in self.rectangles(height, width, rng):
                shape = [channels, h, w] if self.mode == "pixel" else [channels, 1, 1]
                value = 0.0 if self.mode == "const" else self._normal(shape, images, rng)
                images[index, :, top : top + h, left : left + w] = value
        return images

    def rectangles(self, height: int, width: int, rng: np.random.Generator) -> Iterator[_Rectangle]:
        """Up to `count` rectangles (top, left, height, width) in an image of height x width."""
        low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
        for _ in range(self.count):
            for _ in range(_TRIES):
                area = rng.uniform(*_AREA) * height * width / self.count
                ratio = math.exp(rng.uniform(low, high))
                h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if 0 < h < height and 0 < w < width:
                    yield int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
                    break

    def _normal(self, shape: Sequence[int], images: Tensor, rng: np.random.Generator) -> Tensor:
        """Standard normal numbers from a random place of a pool on the images' device.

        Drawing new ones costs several times what everything else costs here, and on a GPU a transfer. The pool is
        always the same, so that values depend on the key alone; two rectangles may share a stretch of it.
        """
        num_values = math.prod(images.shape[1:])
        if self._pool is None or self._pool.shape[0] != _POOL_SIZE + num_values:
            pool = np.random.Generator(np.random.PCG64(0)).standard_normal(_POOL_SIZE + num_values, dtype=np.float32)
            self._pool = paddle.to_tensor(pool, place=images.place).astype(images.dtype)
        start = int(rng.integers(_POOL_SIZE))
        return self._pool[start : start + math.prod(shape)].reshape(shape)


def build_erasing(config: CfgNode) -> Callable[[Tensor, Key], Tensor] | None:
    """Random erasing as TRAIN asks for it: erase(images, key) -> images; None where its probability is 0."""
    train = config.TRAIN
    if train.RANDOM_ERASE_PROB == 0.0:
        return None
    return RandomErasing(prob=train.RANDOM_ERASE_PROB, mode=train.RANDOM_ERASE_MODE, count=train.RANDOM_ERASE_COUNT)
