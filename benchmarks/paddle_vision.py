"""The baseline of data.py: PaddleViT's data path, written from paddle.vision's transforms on Pillow's images, with a
float tensor per image and erasing by Paddle's operators.

It runs in a process of its own, on Paddle as it is by default: paddlevit sets Paddle's flags when it is imported.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from typing import Any, Callable
from unittest import mock

import numpy as np
import paddle
import paddle.vision.transforms as T
from paddle import Tensor
from paddle.io.dataloader.collate import default_collate_fn
from PIL import Image
from yacs.config import CfgNode

from benchmarks.models import PLAIN
from benchmarks.rates import loader_rate
from paddlevit.data import open_source
from paddlevit.data.augment import RandAugment
from paddlevit.data.sources import Source

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_GREY = (128, 128, 128)
_BATCH = 32
NAMES = ("crop, flip", "training", "evaluation")


class Baseline:
    """The chains of `NAMES`, measured in another process that lives until `close`."""

    def __init__(self, config: CfgNode) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config))
        with mock.patch.dict(os.environ, {**PLAIN, "OMP_NUM_THREADS": "1"}):
            self._process.start()
        theirs.close()

    def milliseconds(self, name: str, images: int) -> float:
        """CPU milliseconds that an image takes, from its file to a batch."""
        return self._ask(("chain", name, images))

    def loader_rate(self, name: str, workers: int, batch_size: int, images: int) -> dict[str, float]:
        """The same chain in Paddle's DataLoader: see rates.loader_rate."""
        return self._ask(("loader", name, workers, batch_size, images))

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)  # closing the pipe says nothing: loaders' workers may have it open too
        self._process.join()

    def _ask(self, question: tuple) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()


def _serve(pipe: Any, config: CfgNode) -> None:
    """Answer questions until there is None, or nobody to ask them."""
    multiprocessing.set_start_method("fork", force=True)  # for Paddle's loaders, where this process was spawned
    paddle.set_device("cpu")
    source, size = open_source(config, "train"), config.DATA.IMAGE_SIZE
    chains = (
        training_chain(size, full=False),
        training_chain(size, full=True),
        evaluation_chain(size, config.DATA.CROP_PCT),
    )
    datasets = {name: BaselineDataset(source, chain) for name, chain in zip(NAMES, chains)}
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        if question is None:
            return
        kind, name, *rest = question
        dataset = datasets[name]
        if kind == "chain":
            pipe.send(_milliseconds(dataset, *rest))
        else:
            workers, batch_size, images = rest
            loader = paddle.io.DataLoader(dataset, batch_size=batch_size, num_workers=workers, shuffle=True)
            pipe.send(loader_rate(lambda: loader, images))  # noqa: B023


def _milliseconds(dataset: BaselineDataset, images: int) -> float:
    start = time.process_time()
    for first in range(0, images, _BATCH):
        default_collate_fn([dataset[i % len(dataset)] for i in range(first, min(first + _BATCH, images))])
    return (time.process_time() - start) / images * 1e3


class BaselineDataset(paddle.io.Dataset):
    """Images float32 [3, S, S] and labels of a source, by one of the chains below."""

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        super().__init__()
        self.source = source
        self.transform = transform

    def __getitem__(self, i: int) -> Sequence[Any]:
        image = Image.open(io.BytesIO(self.source.read(i))).convert("RGB")
        return self.transform(image), np.int64(self.source.label(i))

    def __len__(self) -> int:
        return len(self.source)


def training_chain(size: int, *, full: bool) -> T.Compose:
    """Crop and flip; `full`: RandAugment and random erasing as well.

    As in PaddleViT, geometric operations take the nearest pixel and fill with grey.
    """
    nearest = Image.Resampling.NEAREST
    rand_augment = RandAugment(layers=2, magnitude=9, std=0.5, fill=_GREY, resample=nearest)
    rng = np.random.default_rng(0)
    steps: list[Any] = [T.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation="bicubic"), T.RandomHorizontalFlip()]
    steps += [lambda image: rand_augment(image, rng)] if full else []
    steps += [T.ToTensor(), T.Normalize(_MEAN, _STD)]
    return T.Compose([*steps, _erase] if full else steps)


def evaluation_chain(size: int, crop_pct: float) -> T.Compose:
    """Resize the shorter side, cut out the centre."""
    resize = T.Resize(math.floor(size / crop_pct), interpolation="bicubic")
    return T.Compose([resize, T.CenterCrop(size), T.ToTensor(), T.Normalize(_MEAN, _STD)])


def _erase(image: Tensor) -> Tensor:
    """Random erasing of one image with probability 0.25, pixel by pixel."""
    if random.random() >= 0.25:
        return image
    channels, height, width = image.shape
    area = random.uniform(0.02, 1 / 3) * height * width
    ratio = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
    h, w = min(height - 1, round(math.sqrt(area * ratio))), min(width - 1, round(math.sqrt(area / ratio)))
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    image[:, top : top + h, left : left + w] = paddle.normal(shape=[channels, h, w])
    return image
