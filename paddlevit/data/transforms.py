"""From a decoded Pillow image (mode RGB or L) to the uint8 pixels that a model is trained or evaluated on.

transform(image, rng) returns an array [DATA.IMAGE_SIZE, DATA.IMAGE_SIZE, C]; all randomness comes from `rng`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from paddlevit.data.augment import FILTERS, Augmentation, apply, build_augmentation
from paddlevit.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right, bottom

_TRIES = 10
# An image of 1 x 100,000 pixels, whole, would take gigabytes once its shorter side has 256.
_MAX_RESIZED_PIXELS = 1 << 25


def to_array(image: Image.Image | np.ndarray) -> np.ndarray:
    """The pixels [H, W, C], writable."""
    pixels = image if isinstance(image, np.ndarray) else np.array(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@dataclass
class EvalTransform:
    """The usual evaluation: the shorter side becomes int(size / crop_pct), then the centre is cut out. Without a
    `crop_pct` both sides become `size`, and nothing is cut off, as CvT is evaluated at 384 pixels.

    The longer side is truncated, and the offsets are rounded half to even, so that pixels are those that published
    accuracies were measured with; but of a very long image, over 33 million pixels then, only the part that is kept is
    resized, which moves values by a few levels.
    """

    size: int
    crop_pct: float | None
    resample: Image.Resampling

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        (width, height), (left, top) = self._geometry(image.size)
        if width * height > _MAX_RESIZED_PIXELS:
            return to_array(image.resize((self.size, self.size), self.resample, box=self.source_box(image.size)))
        box = (left, top, left + self.size, top + self.size)
        return to_array(_cropped_resize(image, (width, height), box, self.resample))

    def source_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what is kept of an image of `size` (width, height), in its pixels."""
        (width, height), (left, top) = self._geometry(size)
        x0, x1 = (edge * size[0] / width for edge in (left, left + self.size))
        y0, y1 = (edge * size[1] / height for edge in (top, top + self.size))
        return x0, y0, x1, y1

    def _geometry(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of the resized image, (left, top) of the square in it."""
        if self.crop_pct is None:
            return (self.size, self.size), (0, 0)
        width, height = (int(int(self.size / self.crop_pct) * side / min(size)) for side in size)
        return (width, height), (int(round((width - self.size) / 2.0)), int(round((height - self.size) / 2.0)))


@dataclass
class RandomResizedCrop:
    """A random part of the image, resized to size x size (Szegedy et al. 2015, section 6).

    `scale`: smallest and largest share of the area; `ratio`: smallest and largest width / height.
    """

    size: int
    scale: Sequence[float]
    ratio: Sequence[float]
    resample: Image.Resampling

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """The part to keep: its area is uniform, its ratio log-uniform, its place uniform. After ten that do not fit,
        the largest centred one whose ratio is within the bounds.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_TRIES):
            area = width * height * rng.uniform(self.scale[0], self.scale[1])
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        part = image.crop(self.box(image.width, image.height, rng))
        return part.resize((self.size, self.size), self.resample)


@dataclass
class PaddedCrop:
    """The image, at size x size, moved by up to `padding` pixels along each axis; zeros come in from outside."""

    size: int
    padding: int
    resample: Image.Resampling

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """The part to keep before that: all."""
        return 0, 0, width, height

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        image = image.resize((self.size, self.size), self.resample)
        left, top = self.offset(rng)
        return image.crop((left, top, left + self.size, top + self.size))

    def offset(self, rng: np.random.Generator) -> tuple[int, int]:
        """How far the image moves to the left and up, in pixels."""
        left, top = rng.integers(-self.padding, self.padding, size=2, endpoint=True)
        return int(left), int(top)


@dataclass
class TrainTransform:
    """Crop, mirror with probability `hflip`, then augment."""

    crop: RandomResizedCrop | PaddedCrop
    hflip: float
    augmentation: Augmentation | None

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        return self.augmented(self.crop(image, rng), rng)

    def augmented(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        """What follows the crop, for Pillow's images and for arrays (see augment.py)."""
        if rng.random() < self.hflip:
            image = apply("mirror", image)
        if self.augmentation is not None:
            image = self.augmentation(image, rng)
        return to_array(image)


def build_eval_transform(config: CfgNode) -> EvalTransform:
    """The transform of validation and test images."""
    data = config.DATA
    crop_pct = None if data.RESIZE_MODE == "squash" else data.CROP_PCT
    return EvalTransform(data.IMAGE_SIZE, crop_pct, FILTERS[data.INTERPOLATION])


def build_train_transform(config: CfgNode) -> TrainTransform:
    """The transform of training images."""
    train, size, resample = config.TRAIN, config.DATA.IMAGE_SIZE, FILTERS[config.DATA.INTERPOLATION]
    for key in ("CROP_SCALE", "CROP_RATIO"):
        if len(train[key]) != 2 or not 0.0 < train[key][0] <= train[key][1]:
            raise UserError(f"TRAIN.{key} must be two numbers above 0, the smaller one first, got {list(train[key])}")
    crop: RandomResizedCrop | PaddedCrop = RandomResizedCrop(size, train.CROP_SCALE, train.CROP_RATIO, resample)
    if train.CROP == "padded":
        crop = PaddedCrop(size, train.CROP_PADDING, resample)
    return TrainTransform(crop, train.HFLIP, build_augmentation(config))


def _cropped_resize(image: Image.Image, size: tuple[int, int], box: Box, resample: Image.Resampling) -> Image.Image:
    """A box of the image at `size`, value by value.

    Pillow resizes rows first, to whole levels, and columns then: rows that no pixel of the box is made of need not be
    resized (black ones take their places), and what lies beside the box need not reach the second step.
    """
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
        return image.resize(size, resample).crop(box)
    scale, reach = image.height / size[1], 3 * max(image.height / size[1], 1.0)  # of the widest filter, and a little
    first, last = max(0, int(top * scale - reach)), min(image.height, int(bottom * scale + reach) + 1)
    rows = image.crop((0, first, image.width, last))
    rows = rows.resize((size[0], last - first), resample).crop((left, -first, right, image.height - first))
    return rows.resize((right - left, size[1]), resample).crop((0, top, right - left, bottom))
