"""Made-up photographs of balls, bricks and leaves: a data set as a person brings it, to try every tool on."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image

from paddlevit.commands.photographs import scenery
from paddlevit.errors import UserError

_SIZE = (320, 240)
_COUNTS = {"train": 30, "val": 10}  # of each class
_QUALITY = 90
_SATURATION = 0.4  # of the background, compared with the scenery's


class _Thing(NamedTuple):
    """In coordinates where it reaches from -1 to 1 along its longer side: how far inside a place is (below 0: outside),
    and how bright it is there; and the range of its hues, from 0 to 1.
    """

    inside: Callable[[np.ndarray, np.ndarray], np.ndarray]
    light: Callable[[np.ndarray, np.ndarray], np.ndarray]
    hues: tuple[float, float]


def write_still_lifes(folder: Path, *, force: bool = False, seed: int = 0) -> str:
    """Write folder/<split>/<class>/<number>.jpg, always the same ones. What was done, in a sentence.

    Hues overlap, so that a network has to look at shapes and textures too. Raises UserError where the folder is not
    empty.
    """
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name another folder, or -force to write into it")
    rng = np.random.default_rng(seed)
    for split, count in _COUNTS.items():
        for name, thing in _THINGS.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(_photograph(thing, rng)).save(folder / split / name / f"{i:03d}.jpg", quality=_QUALITY)
    told = " and ".join(
        f"{count * len(_THINGS)} to {split}" for split, count in zip(("train on", "validate"), _COUNTS.values())
    )
    return f"{told}, made-up photographs of {', '.join(_THINGS)}, are in {folder}"


def _photograph(thing: _Thing, rng: np.random.Generator) -> np.ndarray:
    """The thing in front of some scenery, anywhere, of any size and turned; uint8 [H, W, 3]."""
    width, height = _SIZE if rng.random() < 0.7 else _SIZE[::-1]
    background = _background(width, height, rng)
    size = rng.uniform(0.22, 0.42) * min(width, height)
    space = min(width, height) / 2 - 0.8 * size  # evaluation looks at the square in the middle
    x0, y0 = (side / 2 + rng.uniform(-space, space) for side in (width, height))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width]
    along = ((x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)) / size
    across = ((y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)) / size
    cover = (thing.inside(along, across) * size / 2 + 0.5).clip(0, 1)[:, :, None]  # an edge of two pixels
    grain = 1 + 0.05 * rng.normal(size=(height, width, 1))
    colour = _rgb(rng.uniform(*thing.hues), rng.uniform(0.45, 0.8), rng.uniform(150, 235))
    front = colour * thing.light(along, across)[:, :, None] * grain
    return (background * (1 - cover) + front * cover).clip(0, 255).astype(np.uint8)


def _background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Scenery in pale colours and a little out of focus; float [H, W, 3], 0 to 255."""
    small = Image.fromarray(scenery(width // 2, height // 2, rng))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return _SATURATION * pixels + (1 - _SATURATION) * pixels.mean(axis=2, keepdims=True)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    wheel = np.abs((6 * hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 - saturation + saturation * wheel.clip(0, 1))


def _ball_light(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A matt ball with a lamp behind the camera and to the side, and its reflection."""
    depth = np.sqrt((1 - u**2 - v**2).clip(0, 1))
    facing = (0.5 * u - 0.4 * v + 0.77 * depth).clip(0, 1)
    return 0.25 + 0.75 * facing + 0.5 * facing**20


def _brick_light(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Three dark holes, and worn edges."""
    holes = sum(np.exp(-((((u - at) ** 2 + v**2) / 0.02) ** 2)) for at in (-0.55, 0.0, 0.55))
    return 0.85 - 0.6 * holes + 0.15 * np.sin(23 * u) * np.sin(31 * v)


def _leaf_light(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A bright rib in the middle, and veins that leave it at an angle."""
    rib = np.exp(-((v / 0.03) ** 2))
    veins = np.exp(-((np.sin(14 * (u - np.abs(v))) / 0.25) ** 2))
    return 0.7 + 0.5 * rib + 0.25 * veins - 0.2 * np.abs(v)


_THINGS: dict[str, _Thing] = {
    "ball": _Thing(lambda u, v: 1 - np.hypot(u, v), _ball_light, (0.0, 1.0)),
    "brick": _Thing(lambda u, v: np.minimum(1 - np.abs(u), 0.48 - np.abs(v)), _brick_light, (0.0, 0.1)),
    "leaf": _Thing(lambda u, v: 0.5 * (1 - u**2) - np.abs(v), _leaf_light, (0.05, 0.4)),
}
