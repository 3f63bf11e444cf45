"""A source and a transform as a map-style data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np

from paddlevit.data.sources import Source

# (seed, epoch, position in the epoch): what the randomness of a sample depends on, and nothing else.
Key = tuple[int, ...]
Sample = tuple[int, Optional[Key]]
Drawn = tuple[int, Optional[np.random.Generator]]

MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels

# Other parts draw from the same seeds; this number keeps the samples' stream apart from theirs.
_STREAM = 3


class ImageDataset:
    """Transformed images of a source, with their labels."""

    def __init__(self, source: Source, transform: Callable[..., np.ndarray], *, channels: int = 3) -> None:
        self.source = source
        self.transform = transform
        self.mode = MODES[channels]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, drawn: Drawn) -> tuple[np.ndarray, np.int64]:
        """Pixels uint8 [H, W, C] and label of the image `index`, for drawn = (index, generator or None).

        Raises UserError, naming the image, where it cannot be read.
        """
        index, rng = drawn
        return self._pixels(index, rng), np.int64(self.source.label(index))

    def _pixels(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        image = self.source.image(index)
        if image.mode != self.mode:
            image = image.convert(self.mode)
        return self.transform(image, rng)


class PartDataset(ImageDataset):
    """An ImageDataset whose transform reads the images itself, because it does not need the whole of them."""

    def _pixels(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        return self.transform(self.source, index, rng)


def with_generators(samples: Sequence[Sample]) -> list[Drawn]:
    """Each image with its generator: the same sample has the same pixels in every process and at every time.

    Those of a batch are made at once. Between two images one takes four times as long, as what it runs through has left
    the processor's caches.
    """
    return [(index, None if key is None else _generator(key)) for index, key in samples]


def _generator(key: Key) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=(_STREAM,))))
