"""RandAugment, AutoAugment, 3-Augment and colour jitter.

They are written once, over the operations of pillow_ops.py or those of opencv_ops.py: an image here is what these take.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Callable, NamedTuple

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from paddlevit.data import pillow_ops
from paddlevit.data.pillow_ops import Fill
from paddlevit.errors import UserError

Augmentation = Callable[[Any, np.random.Generator], Any]

MAX_LEVEL = 10.0
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

_VALUES = np.arange(256)


class Draw(NamedTuple):
    """What an operation needs besides its level: a direction, a filter, and the colour where no pixel comes from."""

    sign: float
    resample: Image.Resampling
    fill: Fill


Op = Callable[[Any, float, Draw], Any]


def _autocontrast(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    return ops.autocontrast(image)


def _equalize(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    return ops.equalize(image)


def _invert(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    return ops.lookup(image, _solarized(0))


def _rotate(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    degrees = draw.sign * level / MAX_LEVEL * 30.0
    return ops.rotate(image, degrees, draw.resample, draw.fill) if degrees else image


def _posterize(image: Any, level: float, draw: Draw, *, ops: ModuleType, increasing: bool) -> Any:
    step = int(level / MAX_LEVEL * 4)
    bits = 4 - step if increasing else 4 + step
    # Pillow 13 refuses 0 bits, which the highest level asks for.
    return ops.lookup(image, (_VALUES >> (8 - bits) << (8 - bits)).astype(np.uint8)) if bits < 8 else image


def _solarize(image: Any, level: float, draw: Draw, *, ops: ModuleType, increasing: bool) -> Any:
    step = int(level / MAX_LEVEL * 256)
    threshold = 256 - step if increasing else step
    return ops.lookup(image, _solarized(threshold)) if threshold < 256 else image


def _solarized(threshold: int) -> np.ndarray:
    return np.where(threshold <= _VALUES, 255 - _VALUES, _VALUES).astype(np.uint8)


def _solarize_add(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    added = int(level / MAX_LEVEL * 110)
    table = np.where(_VALUES >= 128, _VALUES, np.minimum(_VALUES + added, 255)).astype(np.uint8)
    return ops.lookup(image, table) if added else image


def _enhance(image: Any, level: float, draw: Draw, *, blend: Callable, increasing: bool) -> Any:
    if increasing:
        factor = max(0.1, 1.0 + draw.sign * level / MAX_LEVEL * 0.9)
    else:
        factor = 0.1 + level / MAX_LEVEL * 1.8
    return blend(image, factor) if factor != 1.0 else image


def _affine(image: Any, matrix: tuple[float, ...], draw: Draw, ops: ModuleType) -> Any:
    return image if matrix == (1, 0, 0, 0, 1, 0) else ops.affine(image, matrix, draw.resample, draw.fill)


def _shear_x(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    return _affine(image, (1, draw.sign * level / MAX_LEVEL * 0.3, 0, 0, 1, 0), draw, ops)


def _shear_y(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    return _affine(image, (1, 0, 0, draw.sign * level / MAX_LEVEL * 0.3, 1, 0), draw, ops)


def _translate_x(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    return _affine(image, (1, 0, draw.sign * level / MAX_LEVEL * 0.45 * ops.size(image)[0], 0, 1, 0), draw, ops)


def _translate_y(image: Any, level: float, draw: Draw, *, ops: ModuleType) -> Any:
    return _affine(image, (1, 0, 0, 0, 1, draw.sign * level / MAX_LEVEL * 0.45 * ops.size(image)[1]), draw, ops)


def operations(ops: ModuleType, *, increasing: bool) -> dict[str, Op]:
    """Operation by name, on what `ops` takes; `increasing`: a higher level always changes the image more."""
    blends = {"Color": ops.colour, "Contrast": ops.contrast, "Brightness": ops.brightness, "Sharpness": ops.sharpness}
    on = functools.partial
    return {
        "AutoContrast": on(_autocontrast, ops=ops),
        "Equalize": on(_equalize, ops=ops),
        "Invert": on(_invert, ops=ops),
        "Rotate": on(_rotate, ops=ops),
        "Posterize": on(_posterize, ops=ops, increasing=increasing),
        "Solarize": on(_solarize, ops=ops, increasing=increasing),
        "SolarizeAdd": on(_solarize_add, ops=ops),
        **{name: on(_enhance, blend=blend, increasing=increasing) for name, blend in blends.items()},
        "ShearX": on(_shear_x, ops=ops),
        "ShearY": on(_shear_y, ops=ops),
        "TranslateX": on(_translate_x, ops=ops),
        "TranslateY": on(_translate_y, ops=ops),
    }


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


class RandAugment:
    """`layers` operations drawn uniformly with replacement, all at about the same level (Cubuk et al. 2020, section 3).

    From the paper: the random choice and one magnitude for all operations, here from 0 to 10. From practice, and what
    recipes call rand-m9-mstd0.5-inc1: an operation that was drawn is applied with probability 0.5, its level is normal
    around `magnitude` with deviation `std`, clipped to [0, 10], levels change the image the more the higher they are
    ("increasing"), translations are relative to the image's size, Invert and SolarizeAdd join the paper's operations
    and the identity leaves, geometric operations use the filter that images are resized with, and fill with `fill`.

    At level m: rotation by 3m degrees, shear by 0.03m, translation by 4.5m % of the side, each to either side;
    colour, contrast, brightness and sharpness times 1 +- 0.09m (at least 0.1); posterize to 4 - int(0.4m) bits;
    solarize from 256 - int(25.6m); values below 128 plus int(11m).
    """

    def __init__(
        self,
        *,
        layers: int,
        magnitude: float,
        std: float,
        fill: Fill,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        ops: ModuleType = pillow_ops,
    ) -> None:
        self.ops = tuple(operations(ops, increasing=True).values())
        self.layers = layers
        self.magnitude = magnitude
        self.std = std
        self.fill = fill
        self.resample = resample

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        """An image of the same size and mode."""
        for index in rng.integers(len(self.ops), size=self.layers):
            if rng.random() < 0.5:
                level = min(max(rng.normal(self.magnitude, self.std), 0.0), MAX_LEVEL)
                image = self.ops[index](image, level, Draw(_sign(rng), self.resample, self.fill))
        return image


class AutoAugment:
    """One of the 25 sub-policies that were found on ImageNet, drawn uniformly (Cubuk et al. 2019, table 9).

    The paper's ranges (table 6) divided by 10 levels: posterize keeps 4 + int(0.4m) bits, solarize inverts from
    int(25.6m), colour, contrast and sharpness are multiplied by 0.1 + 0.18m. From practice: the side of rotations and
    shears is drawn anew for each image, and `fill` is the images' mean colour instead of grey.
    """

    def __init__(
        self,
        *,
        fill: Fill,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        ops: ModuleType = pillow_ops,
    ) -> None:
        self.ops = operations(ops, increasing=False)
        self.fill = fill
        self.resample = resample

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        """An image of the same size and mode."""
        for name, probability, level in AUTO_AUGMENT_POLICY[rng.integers(len(AUTO_AUGMENT_POLICY))]:
            if rng.random() < probability:
                image = self.ops[name](image, level, Draw(_sign(rng), self.resample, self.fill))
        return image


class ColorJitter:
    """Brightness, contrast and saturation in random order, each times a factor uniform in [max(0, 1 - j), 1 + j]."""

    def __init__(self, strength: float, *, ops: ModuleType = pillow_ops) -> None:
        self.low = max(0.0, 1.0 - strength)
        self.high = 1.0 + strength
        self.blends = (ops.brightness, ops.contrast, ops.colour)

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        """An image of the same size and mode."""
        for index in rng.permutation(len(self.blends)):
            image = self.blends[index](image, rng.uniform(self.low, self.high))
        return image


class ThreeAugment:
    """Grey, solarized from 128 on, or blurred by a deviation uniform in [0.1, 2] pixels, each with probability 1/3,
    then colour jitter of the strength `jitter` (Touvron et al. 2022, "DeiT III", where it is 0.3).
    """

    RADIUS = (0.1, 2.0)
    THRESHOLD = 128

    def __init__(self, *, jitter: float, ops: ModuleType = pillow_ops) -> None:
        self.ops = ops
        self.jitter = ColorJitter(jitter, ops=ops) if jitter else None

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        """An image of the same size and mode."""
        choice = rng.integers(3)
        if choice == 0:
            image = self.ops.grey(image)
        elif choice == 1:
            image = self.ops.lookup(image, _solarized(self.THRESHOLD))
        else:
            image = self.ops.blur(image, rng.uniform(*self.RADIUS))
        return self.jitter(image, rng) if self.jitter else image


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


def build_augmentation(config: CfgNode, ops: ModuleType = pillow_ops) -> Augmentation | None:
    """What TRAIN asks for, on what `ops` takes: AUTO_AUGMENT before THREE_AUGMENT before RAND_AUGMENT before
    COLOR_JITTER; None where all are off.

    Raises UserError where DATA.IMAGENET_MEAN does not fit DATA.IMAGE_CHANNELS.
    """
    train, data = config.TRAIN, config.DATA
    fill = mean_colour(data.IMAGENET_MEAN, data.IMAGE_CHANNELS)
    common: dict[str, Any] = {"fill": fill, "resample": FILTERS[data.INTERPOLATION], "ops": ops}
    if train.AUTO_AUGMENT:
        return AutoAugment(**common)
    if train.THREE_AUGMENT:
        return ThreeAugment(jitter=train.COLOR_JITTER, ops=ops)
    if train.RAND_AUGMENT:
        return RandAugment(
            layers=train.RAND_AUGMENT_LAYERS,
            magnitude=train.RAND_AUGMENT_MAGNITUDE,
            std=train.RAND_AUGMENT_STD,
            **common,
        )
    return ColorJitter(train.COLOR_JITTER, ops=ops) if train.COLOR_JITTER else None
