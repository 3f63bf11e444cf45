"""RandAugment, AutoAugment and colour jitter on Pillow images (mode RGB or L)."""

import functools
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from yacs.config import CfgNode

from paddlevit.errors import UserError

Fill = Union[int, Tuple[int, ...]]
Augmentation = Callable[[Image.Image, np.random.Generator], Image.Image]

MAX_LEVEL = 10.0


class Draw(NamedTuple):
    """What an operation needs besides its level: a direction, a filter, and the colour where no pixel comes from."""

    sign: float
    resample: Image.Resampling
    fill: Fill


Op = Callable[[Image.Image, float, Draw], Image.Image]


def _autocontrast(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    degrees = draw.sign * level / MAX_LEVEL * 30.0
    return image.rotate(degrees, resample=draw.resample, fillcolor=draw.fill) if degrees else image


def _posterize(image: Image.Image, level: float, draw: Draw, *, increasing: bool) -> Image.Image:
    step = int(level / MAX_LEVEL * 4)
    bits = 4 - step if increasing else 4 + step
    # Pillow 13 refuses 0 bits, which the highest level asks for.
    table = [value >> (8 - bits) << (8 - bits) for value in range(256)]
    return image.point(table * len(image.getbands())) if bits < 8 else image


def _solarize(image: Image.Image, level: float, draw: Draw, *, increasing: bool) -> Image.Image:
    step = int(level / MAX_LEVEL * 256)
    threshold = 256 - step if increasing else step
    return ImageOps.solarize(image, threshold) if threshold < 256 else image


def _solarize_add(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    added = int(level / MAX_LEVEL * 110)
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands())) if added else image


def _enhance(image: Image.Image, level: float, draw: Draw, *, kind: Callable, increasing: bool) -> Image.Image:
    if increasing:
        factor = max(0.1, 1.0 + draw.sign * level / MAX_LEVEL * 0.9)
    else:
        factor = 0.1 + level / MAX_LEVEL * 1.8
    return kind(image).enhance(factor) if factor != 1.0 else image


def _affine(image: Image.Image, matrix: Tuple[float, ...], draw: Draw) -> Image.Image:
    if matrix == (1, 0, 0, 0, 1, 0):
        return image
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=draw.resample, fillcolor=draw.fill)


def _shear_x(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    return _affine(image, (1, draw.sign * level / MAX_LEVEL * 0.3, 0, 0, 1, 0), draw)


def _shear_y(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    return _affine(image, (1, 0, 0, draw.sign * level / MAX_LEVEL * 0.3, 1, 0), draw)


def _translate_x(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    return _affine(image, (1, 0, draw.sign * level / MAX_LEVEL * 0.45 * image.width, 0, 1, 0), draw)


def _translate_y(image: Image.Image, level: float, draw: Draw) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, draw.sign * level / MAX_LEVEL * 0.45 * image.height), draw)


def _ops(*, increasing: bool) -> Dict[str, Op]:
    """Operation by name; `increasing`: a higher level always changes the image more."""
    kinds = (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)
    return {
        "AutoContrast": _autocontrast,
        "Equalize": _equalize,
        "Invert": _invert,
        "Rotate": _rotate,
        "Posterize": functools.partial(_posterize, increasing=increasing),
        "Solarize": functools.partial(_solarize, increasing=increasing),
        "SolarizeAdd": _solarize_add,
        **{kind.__name__: functools.partial(_enhance, kind=kind, increasing=increasing) for kind in kinds},
        "ShearX": _shear_x,
        "ShearY": _shear_y,
        "TranslateX": _translate_x,
        "TranslateY": _translate_y,
    }


RAND_AUGMENT_OPS = _ops(increasing=True)
AUTO_AUGMENT_OPS = _ops(increasing=False)

_Step = Tuple[str, float, int]  # operation, probability, level

# Cubuk et al. 2019, "AutoAugment", table 9 in the appendix.
AUTO_AUGMENT_POLICY: Tuple[Tuple[_Step, _Step], ...] = (
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


def _draw(rng: np.random.Generator, fill: Fill) -> Draw:
    sign = 1.0 if rng.random() < 0.5 else -1.0
    return Draw(sign, Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC, fill)


class RandAugment:
    """`layers` operations drawn uniformly with replacement, all at about the same level (Cubuk et al. 2020, section 3).

    From the paper: the random choice and one magnitude for all operations, here from 0 to 10. From practice, and what
    recipes call rand-m9-mstd0.5-inc1: an operation that was drawn is applied with probability 0.5, its level is normal
    around `magnitude` with deviation `std`, clipped to [0, 10], levels change the image the more the higher they are
    ("increasing"), translations are relative to the image's size, Invert and SolarizeAdd join the paper's operations
    and the identity leaves, geometric operations draw their filter, bilinear or bicubic, and fill with `fill`.

    At level m: rotation by 3m degrees, shear by 0.03m, translation by 4.5m % of the side, each to either side;
    colour, contrast, brightness and sharpness times 1 +- 0.09m (at least 0.1); posterize to 4 - int(0.4m) bits;
    solarize from 256 - int(25.6m); values below 128 plus int(11m).
    """

    def __init__(self, *, layers: int, magnitude: float, std: float, fill: Fill) -> None:
        self.ops = tuple(RAND_AUGMENT_OPS.values())
        self.layers = layers
        self.magnitude = magnitude
        self.std = std
        self.fill = fill

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An image of the same size and mode."""
        for index in rng.integers(len(self.ops), size=self.layers):
            if rng.random() < 0.5:
                level = min(max(rng.normal(self.magnitude, self.std), 0.0), MAX_LEVEL)
                image = self.ops[index](image, level, _draw(rng, self.fill))
        return image


class AutoAugment:
    """One of the 25 sub-policies that were found on ImageNet, drawn uniformly (Cubuk et al. 2019, table 9).

    The paper's ranges (table 6) divided by 10 levels: posterize keeps 4 + int(0.4m) bits, solarize inverts from
    int(25.6m), colour, contrast and sharpness are multiplied by 0.1 + 0.18m. From practice: the side of rotations and
    shears is drawn anew for each image, and `fill` is the images' mean colour instead of grey.
    """

    def __init__(self, *, fill: Fill) -> None:
        self.fill = fill

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An image of the same size and mode."""
        for name, probability, level in AUTO_AUGMENT_POLICY[rng.integers(len(AUTO_AUGMENT_POLICY))]:
            if rng.random() < probability:
                image = AUTO_AUGMENT_OPS[name](image, level, _draw(rng, self.fill))
        return image


class ColorJitter:
    """Brightness, contrast and saturation in random order, each times a factor uniform in [max(0, 1 - j), 1 + j]."""

    KINDS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

    def __init__(self, strength: float) -> None:
        self.low = max(0.0, 1.0 - strength)
        self.high = 1.0 + strength

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An image of the same size and mode."""
        for index in rng.permutation(len(self.KINDS)):
            image = self.KINDS[index](image).enhance(rng.uniform(self.low, self.high))
        return image


def mean_colour(mean: Sequence[float], channels: int) -> Fill:
    """The mean colour of the images, given in [0, 1] per channel, as Pillow takes it for mode RGB (3) or L (1)."""
    if channels not in (1, 3):
        raise UserError(f"DATA.IMAGE_CHANNELS is {channels}, allowed: 1 (grey) or 3 (red, green, blue)")
    if len(mean) not in {channels, 3}:
        raise UserError(
            f"DATA.IMAGENET_MEAN is {list(mean)}, allowed: one number per channel, of which there are {channels}"
        )
    if channels == 1:
        return round(255 * sum(mean) / len(mean))
    return tuple(round(255 * value) for value in mean)


def build_augmentation(config: CfgNode) -> Optional[Augmentation]:
    """What TRAIN asks for: AUTO_AUGMENT before RAND_AUGMENT before COLOR_JITTER; None where all are off.

    Raises UserError where a key is out of its range.
    """
    train, data = config.TRAIN, config.DATA
    for key, low, high in (
        ("RAND_AUGMENT_LAYERS", 1, float("inf")),
        ("RAND_AUGMENT_MAGNITUDE", 0, MAX_LEVEL),
        ("RAND_AUGMENT_STD", 0, float("inf")),
        ("COLOR_JITTER", 0, float("inf")),
    ):
        if not low <= train[key] <= high:
            limit = f"{low} to {high:g}" if high < float("inf") else f"{low} and above"
            raise UserError(f"TRAIN.{key} is {train[key]}, allowed: {limit}")
    fill = mean_colour(data.IMAGENET_MEAN, data.IMAGE_CHANNELS)
    if train.AUTO_AUGMENT:
        return AutoAugment(fill=fill)
    if train.RAND_AUGMENT:
        return RandAugment(
            layers=train.RAND_AUGMENT_LAYERS,
            magnitude=train.RAND_AUGMENT_MAGNITUDE,
            std=train.RAND_AUGMENT_STD,
            fill=fill,
        )
    return ColorJitter(train.COLOR_JITTER) if train.COLOR_JITTER else None
