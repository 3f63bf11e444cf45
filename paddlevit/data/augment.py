"""RandAugment, AutoAugment, 3-Augment and color jitter.

An image is Pillow's, of mode RGB or L, or an array for OpenCV (opencv.py): the same is drawn and done for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Union

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from yacs.config import CfgNode

Augmentation = Callable[[Any, np.random.Generator], Any]
Fill = Union[int, tuple[int, ...]]

MAX_LEVEL = 10.0
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

_BLENDS = ("brightness", "contrast", "color")
_VALUES = np.arange(256)


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling, fill: Fill) -> Image.Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), for matrix = (a, b, c, d, e, f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)


# What the augmentations are made of; opencv.OPS has the same for arrays.
PILLOW: dict[str, Callable[..., Image.Image]] = {
    "lookup": lambda image, table: image.point(table.tolist() * len(image.getbands())),
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "rotate": lambda image, degrees, resample, fill: image.rotate(degrees, resample=resample, fillcolor=fill),
    "shear": lambda image, x, y, *how: _affine(image, (1, x, 0, y, 1, 0), *how),
    "translate": lambda image, x, y, *how: _affine(image, (1, 0, x * image.width, 0, 1, y * image.height), *how),
    "grey": lambda image: image.convert("L").convert(image.mode),
    "blur": lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)),
    "mirror": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


class Draw(NamedTuple):
    """What an operation needs besides its level: a direction (1 or -1), a filter, and the color outside the image."""

    sign: float
    resample: Image.Resampling
    fill: Fill


# An operation: from a level of 0 to 1 to what PILLOW calls it, with the values it takes.
Op = Callable[[float, Draw], tuple[Any, ...]]


def operations(*, increasing: bool) -> dict[str, Op]:
    """Operation by name; `increasing`: a higher level always changes the image more."""

    def factor(m: float, draw: Draw) -> float:
        return max(0.1, 1.0 + draw.sign * m * 0.9) if increasing else 0.1 + m * 1.8

    return {
        "AutoContrast": lambda m, draw: ("autocontrast",),
        "Equalize": lambda m, draw: ("equalize",),
        "Invert": lambda m, draw: ("lookup", _solarized(0)),
        "Rotate": lambda m, draw: ("rotate", draw.sign * m * 30.0, *draw[1:]),
        "Posterize": lambda m, draw: ("lookup", _posterized(4 - int(m * 4) if increasing else 4 + int(m * 4))),
        "Solarize": lambda m, draw: ("lookup", _solarized(256 - int(m * 256) if increasing else int(m * 256))),
        "SolarizeAdd": lambda m, draw: ("lookup", _brightened(int(m * 110))),
        "Color": lambda m, draw: ("color", factor(m, draw)),
        "Contrast": lambda m, draw: ("contrast", factor(m, draw)),
        "Brightness": lambda m, draw: ("brightness", factor(m, draw)),
        "Sharpness": lambda m, draw: ("sharpness", factor(m, draw)),
        "ShearX": lambda m, draw: ("shear", draw.sign * m * 0.3, 0.0, *draw[1:]),
        "ShearY": lambda m, draw: ("shear", 0.0, draw.sign * m * 0.3, *draw[1:]),
        "TranslateX": lambda m, draw: ("translate", draw.sign * m * 0.45, 0.0, *draw[1:]),
        "TranslateY": lambda m, draw: ("translate", 0.0, draw.sign * m * 0.45, *draw[1:]),
    }


def _posterized(bits: int) -> np.ndarray:
    return (_VALUES >> (8 - bits) << (8 - bits)).astype(np.uint8)  # Pillow 13 refuses 0 bits, the highest level


def _solarized(threshold: int) -> np.ndarray:
    return np.where(threshold <= _VALUES, 255 - _VALUES, _VALUES).astype(np.uint8)


def _brightened(added: int) -> np.ndarray:
    return np.where(_VALUES >= 128, _VALUES, np.minimum(_VALUES + added, 255)).astype(np.uint8)


RAND_OPS = list(operations(increasing=True).values())  # recipes draw from all: another would change them
AUTO_OPS = operations(increasing=False)


def perform(op: Op, image: Any, level: float, draw: Draw) -> Any:
    """The image after an operation at a level of 0 to MAX_LEVEL."""
    name, *values = op(level / MAX_LEVEL, draw)
    return apply(name, image, *values)


def apply(name: str, image: Any, *values: Any) -> Any:
    """The image after what PILLOW, or opencv.OPS, calls so."""
    if isinstance(image, np.ndarray):
        from paddlevit.data.opencv import OPS  # an optional package

        return OPS[name](image, *values)
    return PILLOW[name](image, *values)


_Step = tuple[str, float, int]  # operation, probability, level

# Cubuk et al. 2019, "AutoAugment", table 9 in the appendix.
AUTO_AUGMENT_POLICY: tuple[tuple[_Step, _Step], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


@dataclass
class RandAugment:
    """`layers` operations drawn uniformly with replacement, all at about the same level (Cubuk et al. 2020, section 3).

    From practice, and what recipes call rand-m9-mstd0.5-inc1: an operation that was drawn is applied with probability
    0.5, its level is normal around `magnitude` with std `std`, clipped to [0, 10], levels change the image the more the
    higher they are ("increasing"), Invert and SolarizeAdd join the paper's operations and the identity leaves.

    At level m: rotation by 3m degrees, shear by 0.03m, translation by 4.5m % of the side, each to either side;
    color, contrast, brightness and sharpness times 1 +- 0.09m (at least 0.1); posterize to 4 - int(0.4m) bits;
    solarize from 256 - int(25.6m); values below 128 plus int(11m).
    """

    layers: int
    magnitude: float
    std: float
    fill: Fill
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        for index in rng.integers(len(RAND_OPS), size=self.layers):
            if rng.random() < 0.5:
                level = min(max(rng.normal(self.magnitude, self.std), 0.0), MAX_LEVEL)
                image = perform(RAND_OPS[index], image, level, Draw(_sign(rng), self.resample, self.fill))
        return image


@dataclass
class AutoAugment:
    """One of the 25 sub-policies that were found on ImageNet, drawn uniformly (Cubuk et al. 2019, table 9), with the
    ranges of table 6. From practice: the side of rotations and shears is drawn for each image, and `fill` is the mean
    color instead of grey.
    """

    fill: Fill
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        for name, probability, level in AUTO_AUGMENT_POLICY[rng.integers(len(AUTO_AUGMENT_POLICY))]:
            if rng.random() < probability:
                image = perform(AUTO_OPS[name], image, level, Draw(_sign(rng), self.resample, self.fill))
        return image


@dataclass
class ColorJitter:
    """Brightness, contrast and saturation in random order, each times a factor uniform in [max(0, 1 - j), 1 + j]."""

    strength: float

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        for index in rng.permutation(len(_BLENDS)):
            image = apply(_BLENDS[index], image, rng.uniform(max(0.0, 1.0 - self.strength), 1.0 + self.strength))
        return image


@dataclass
class ThreeAugment:
    """Grey, solarized from 128 on, or blurred with a std uniform in [0.1, 2] pixels, each with probability 1/3,
    then color jitter of the strength `jitter` (Touvron et al. 2022, "DeiT III", where it is 0.3).
    """

    jitter: float

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        choice = rng.integers(3)
        if choice == 0:
            image = apply("grey", image)
        elif choice == 1:
            image = apply("lookup", image, _solarized(128))
        else:
            image = apply("blur", image, rng.uniform(0.1, 2.0))
        return ColorJitter(self.jitter)(image, rng) if self.jitter else image


def build_augmentation(config: CfgNode) -> Augmentation | None:
    """What TRAIN asks for; of several the first."""
    train, data = config.TRAIN, config.DATA
    resample, fill = FILTERS[data.INTERPOLATION], mean_color(data.IMAGENET_MEAN, data.IMAGE_CHANNELS)
    if train.AUTO_AUGMENT:
        return AutoAugment(fill, resample)
    if train.THREE_AUGMENT:
        return ThreeAugment(train.COLOR_JITTER)
    if train.RAND_AUGMENT:
        how_much = (train.RAND_AUGMENT_LAYERS, train.RAND_AUGMENT_MAGNITUDE, train.RAND_AUGMENT_STD)
        return RandAugment(*how_much, fill, resample)
    return ColorJitter(train.COLOR_JITTER) if train.COLOR_JITTER else None


def mean_color(mean: Sequence[float], channels: int) -> Fill:
    """The mean color of the images, given in [0, 1] for red, green and blue, as Pillow takes it for mode RGB or L."""
    levels = tuple(round(255 * value) for value in mean)
    return levels if channels == 3 else round(255 * sum(mean) / len(mean))
