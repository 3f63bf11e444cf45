"""The data path that `benchmark.py data` is measured against: what PaddleViT does, written from paddle.vision's
transforms on Pillow's images, with a float tensor per image and erasing by Paddle's operators.
"""

import io
import math
import random
from typing import Any, Callable, List, Sequence

import numpy as np
import paddle
import paddle.vision.transforms as T
from paddle import Tensor
from PIL import Image

from paddlevit.data.augment import RandAugment, mean_colour
from paddlevit.data.sources import Source

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class YardstickDataset(paddle.io.Dataset):
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
    """Crop and flip; `full`: RandAugment and random erasing as well."""
    rand_augment = RandAugment(layers=2, magnitude=9, std=0.5, fill=mean_colour(_MEAN, 3))
    rng = np.random.default_rng(0)
    steps: List[Any] = [T.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation="bicubic"), T.RandomHorizontalFlip()]
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
