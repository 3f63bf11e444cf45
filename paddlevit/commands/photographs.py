"""Made-up photographs that cost what ImageNet's cost: about 500 x 375 pixels and 110 kB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

_SIDES = (500, 375)
_BYTES = 110_000
_EDGES = 24


def write_photographs(folder: Path, count: int, *, seed: int = 0) -> None:
    """Write `count` JPEG files as folder/<split>/<class>/<number>.jpg for the splits train and val, of 2 classes."""
    rng = np.random.default_rng(seed)
    names = [(split, i) for split in ("train", "val") for i in range(count)]
    for split, i in tqdm(names, desc="photographs", unit="image", disable=None):
        width, height = _SIDES if rng.random() < 0.7 else _SIDES[::-1]
        path = folder / split / f"class_{i % 2}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encoded(scenery(width, height, rng), subsampling=2 if rng.random() < 0.75 else 0))


def scenery(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Amplitudes fall with the frequency, as they do in nature, and there are edges; uint8 [H, W, 3]."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij"))
    frequency[0, 0] = 1.0
    y, x = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3))
    shade = rng.normal(size=(height, width, 1))
    for layer, strength in ((rng.normal(size=(height, width, 3)), 14.0), (np.repeat(shade, 3, axis=2), 30.0)):
        spectrum = np.fft.rfft2(layer, axes=(0, 1)) / frequency[:, :, None] ** 1.2
        waves = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
        image += waves / waves.std() * strength
    for _ in range(_EDGES):
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * width
        beyond = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle) > offset
        image += beyond[:, :, None] * rng.normal(0, 10, 3)
    return (image - image.mean((0, 1)) + rng.uniform(90, 150, 3)).clip(0, 255).astype(np.uint8)


def _encoded(pixels: np.ndarray, *, subsampling: int) -> bytes:
    """The JPEG file whose length is nearest to the wanted one."""
    image = Image.fromarray(pixels)
    files = []
    for quality in range(80, 99, 3):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=subsampling)
        files.append(file.getvalue())
    return min(files, key=lambda content: abs(len(content) - _BYTES))
