"""A source and a transform as a map-style data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np

from paddlevit.data.sources import Source
from paddlevit.runtime.seeding import SAMPLES, Key, generator

# Which image, and (seed, epoch, position in the epoch), on which alone its randomness depends.
Sample = tuple[int, Optional[Key]]
Drawn = tuple[int, Optional[np.random.Generator]]

MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels


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
        return self.transform(image if image.mode == self.mode else image.convert(self.mode), rng)


def with_generators(samples: Sequence[Sample]) -> list[Drawn]:
    """Each image with its generator: the same sample has the same pixels in every process and at every time.

    All generators of a batch are made together: made between two images, each takes four times as long, because its
    code has left the processor's caches.
    """
    return [(index, None if key is None else generator(key, SAMPLES)) for index, key in samples]
