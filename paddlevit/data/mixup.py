"""What is drawn for a whole batch: mixup, CutMix and label smoothing, and random erasing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, Union

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from yacs.config import CfgNode

from paddlevit.errors import UserError
from paddlevit.runtime.seeding import ERASING, MIXUP, Key, generator

Images = Union[Tensor, np.ndarray]
_Box = tuple[int, int, int, int]
_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
_TRIES = 10
_POOL_SIZE = 1 << 20


class _Mix(NamedTuple):
    lam: float = 1.0  # the share of an image's own label
    box: _Box | None = None  # that comes from its partner (CutMix)


@dataclass
class SmoothTargets:
    """Images as they are, labels as smoothed one-hot targets: smoothing / K for every class, 1 - smoothing on top."""

    num_classes: int
    smoothing: float = 0.0

    def __call__(self, images: Tensor, labels: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """(images [N, C, H, W], float32 targets [N, K]) for integer labels [N]."""
        return images, self._smooth(F.one_hot(labels, self.num_classes))

    def _smooth(self, targets: Tensor) -> Tensor:
        return targets * (1.0 - self.smoothing) + self.smoothing / self.num_classes


@dataclass
class Mixup(SmoothTargets):
    """Mixup (Zhang et al. 2018, equations 1 and 2) and CutMix (Yun et al. 2019, section 3.1).

    Image i is mixed with image N - 1 - i. Mixup blends, lam x_i + (1 - lam) x_j with lam ~ Beta(a, a); CutMix pastes a
    box of x_j with the share 1 - lam of the area, its centre anywhere in the image. Targets are mixed alike, with lam
    corrected to the area that the box has within the image.
    """

    smoothing: float = 0.1
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    cutmix_minmax: Sequence[float] | None = None  # least and largest share of each side for the box, in place of lam
    prob: float = 1.0  # of mixing at all
    switch_prob: float = 0.5  # of CutMix, where both are on
    mode: str = "batch"  # one lam and box each; per image: 'elem'; per two that are mixed with each other: 'pair'
    until_epoch: int | None = None  # of the keys (seed, epoch, ...)

    @paddle.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """(mixed images [N, C, H, W], float32 targets [N, K]) for integer labels [N]; the input stays as it is."""
        if self.until_epoch is not None and key[1] >= self.until_epoch:
            return super().__call__(images, labels, key)
        rng = generator(key, MIXUP)
        num, _, height, width = images.shape
        partner = paddle.arange(num - 1, -1, -1, dtype="int64")
        targets = F.one_hot(labels, self.num_classes)
        if self.mode == "batch":
            mix = self._draw(height, width, rng)
            lam = mix.lam
            images = _mix_batch(images, partner, mix)
        else:
            mixes = [self._draw(height, width, rng) for _ in range(num if self.mode == "elem" else (num + 1) // 2)]
            if self.mode == "pair":
                mixes += mixes[: num // 2][::-1]
            lam = _column([mix.lam for mix in mixes], like=targets)
            images = _mix_each(images, partner, mixes)
        return images, self._smooth(paddle.gather(targets, partner) * (1.0 - lam) + targets * lam)

    def _draw(self, height: int, width: int, rng: np.random.Generator) -> _Mix:
        if rng.random() >= self.prob:
            return _Mix()
        cutmix_prob = self.switch_prob if self.cutmix_alpha or self.cutmix_minmax else 0.0
        if rng.random() >= (cutmix_prob if self.mixup_alpha else 1.0):
            return _Mix(lam=float(rng.beta(self.mixup_alpha, self.mixup_alpha)))
        top, bottom, left, right = box = self._box(height, width, rng)
        return _Mix(lam=1.0 - (bottom - top) * (right - left) / (height * width), box=box)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> _Box:
        """Top, bottom, left, right."""
        if self.cutmix_minmax:
            low, high = self.cutmix_minmax
            h, w = (int(rng.integers(int(side * low), int(side * high), endpoint=True)) for side in (height, width))
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return top, top + h, left, left + w
        side = (1.0 - rng.beta(self.cutmix_alpha, self.cutmix_alpha)) ** 0.5
        h, w = int(height * side), int(width * side)
        top, left = int(rng.integers(height)) - h // 2, int(rng.integers(width)) - w // 2
        return max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)


def _mix_batch(images: Tensor, partner: Tensor, mix: _Mix) -> Tensor:
    """All images mixed alike. Filling one new tensor in place costs a third of adding two products."""
    if mix.lam == 1.0:
        return images
    if mix.box is None:
        return paddle.gather(images, partner).lerp_(images, mix.lam)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = paddle.gather(images[:, :, top:bottom, left:right], partner)
    return mixed


def _mix_each(images: Tensor, partner: Tensor, mixes: list[_Mix]) -> Tensor:
    """Image i mixed by mixes[i]."""
    num, _, height, width = images.shape
    others = paddle.gather(images, partner)
    share = [1.0 - mix.lam if mix.box is None else 0.0 for mix in mixes]
    mixed = images.lerp(others, _column(share, like=images).reshape([num, 1, 1, 1]))
    if not any(mix.box for mix in mixes):
        return mixed
    top, bottom, left, right = np.array([mix.box or (0, 0, 0, 0) for mix in mixes]).T[:, :, None]
    rows, columns = np.arange(height), np.arange(width)
    in_rows = paddle.to_tensor((rows >= top) & (rows < bottom), place=images.place)
    in_columns = paddle.to_tensor((columns >= left) & (columns < right), place=images.place)
    inside = in_rows.reshape([num, 1, height, 1]) & in_columns.reshape([num, 1, 1, width])
    return paddle.where(inside, others, mixed)


def _column(values: list[float], *, like: Tensor) -> Tensor:
    return paddle.to_tensor(np.array(values, dtype=np.float32)[:, None], place=like.place).astype(like.dtype)


def build_mixup(config: CfgNode) -> Callable[[Tensor, Tensor, Key], tuple[Tensor, Tensor]]:
    """Mixup as TRAIN asks for it; SmoothTargets where neither MIXUP_ALPHA, CUTMIX_ALPHA nor CUTMIX_MINMAX does."""
    train, num_classes = config.TRAIN, config.MODEL.NUM_CLASSES
    if num_classes < 1:
        raise UserError(f"MODEL.NUM_CLASSES must be 1 or more in training, got {num_classes}")
    minmax = train.CUTMIX_MINMAX
    if minmax is not None and (len(minmax) != 2 or minmax[0] > minmax[1]):
        raise UserError(f"TRAIN.CUTMIX_MINMAX must be two numbers, the smaller one first, got {list(minmax)}")
    if train.MIXUP_PROB == 0.0 or not (train.MIXUP_ALPHA or train.CUTMIX_ALPHA or minmax):
        return SmoothTargets(num_classes, train.SMOOTHING)
    return Mixup(
        num_classes=num_classes,
        mixup_alpha=train.MIXUP_ALPHA,
        cutmix_alpha=train.CUTMIX_ALPHA,
        cutmix_minmax=minmax,
        prob=train.MIXUP_PROB,
        switch_prob=train.MIXUP_SWITCH_PROB,
        mode=train.MIXUP_MODE,
        smoothing=train.SMOOTHING,
        until_epoch=train.NUM_EPOCHS - train.MIXUP_OFF_EPOCHS if train.MIXUP_OFF_EPOCHS else None,
    )


@dataclass
class RandomErasing:
    """Overwrites rectangles of some images of a batch (Zhong et al. 2020, algorithm 1).

    Each has 2 % to 1/3 of the image's area divided by `count` (the paper goes up to 40 %). Height /
    width is log-uniform (uniform in the paper, which favours high ones), the place uniform among those that fit; after
    ten sizes that do not fit, the rectangle is left out.
    """

    prob: float  # of an image
    mode: str = "pixel"  # a normal number per value; per rectangle and channel: 'rand'; zero, the mean color: 'const'
    count: int = 1  # rectangles of an image
    _pool: Images | None = None

    @paddle.no_grad()
    def __call__(self, images: Images, key: Key) -> Images:
        """`images` [N, C, H, W], written in place: copying a batch would cost more than all the rest."""
        num, channels, height, width = images.shape
        rng = generator(key, ERASING)
        for index in np.flatnonzero(rng.random(num) < self.prob).tolist():
            for top, left, h, w in self.rectangles(height, width, rng):
                shape = [channels, h, w] if self.mode == "pixel" else [channels, 1, 1]
                value = 0.0 if self.mode == "const" else self._normal(shape, images, rng)
                images[index, :, top : top + h, left : left + w] = value
        return images

    def rectangles(self, height: int, width: int, rng: np.random.Generator) -> Iterator[_Box]:
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

    def _normal(self, shape: Sequence[int], images: Images, rng: np.random.Generator) -> Images:
        """Standard normal numbers from a random place of a pool on the images' device, which is always the same.

        Drawing new ones costs several times what everything else costs here, and on a GPU a transfer.
        """
        num_values = math.prod(images.shape[1:])
        if self._pool is None or self._pool.shape[0] != _POOL_SIZE + num_values:
            pool = np.random.Generator(np.random.PCG64(0)).standard_normal(_POOL_SIZE + num_values, dtype=np.float32)
            if not isinstance(images, np.ndarray):
                pool = paddle.to_tensor(pool, place=images.place).astype(images.dtype)
            self._pool = pool
        start = int(rng.integers(_POOL_SIZE))
        return self._pool[start : start + math.prod(shape)].reshape(shape)


def build_erasing(config: CfgNode) -> Callable[..., Images]:
    """Random erasing as TRAIN asks for it."""
    train = config.TRAIN
    return RandomErasing(train.RANDOM_ERASE_PROB, train.RANDOM_ERASE_MODE, train.RANDOM_ERASE_COUNT)
