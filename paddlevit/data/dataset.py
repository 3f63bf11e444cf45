"""From a source's images to pixels in a batch: what a worker does."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

import numpy as np

from paddlevit.data.sources import Source
from paddlevit.errors import UserError
from paddlevit.runtime.seeding import SAMPLES, Key, generator

# Which image, and (seed, epoch, position in the epoch), on which alone its randomness depends.
Sample = tuple[int, Optional[Key]]

MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels


class Reply(NamedTuple):
    """What is to say of a batch besides its pixels; `bad`: the errors of images that were replaced."""

    labels: list[int]
    bad: list[str]
    error: Exception | None = None


class ImageDataset:
    """Transformed images of a source, with their labels."""

    def __init__(self, source: Source, transform: Callable[..., np.ndarray], *, channels: int = 3) -> None:
        self.source = source
        self.transform = transform
        self.mode = MODES[channels]

    def __len__(self) -> int:
        return len(self.source)

    def pixels(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8 [H, W, C] of the i-th image."""
        image = self.source.image(i)
        return self.transform(image if image.mode == self.mode else image.convert(self.mode), rng)

    def write(self, out: np.ndarray, i: int, rng: np.random.Generator | None = None) -> None:
        """Write those into `out`."""
        out[...] = self.pixels(i, rng)

    def read(self, samples: Sequence[Sample], out: np.ndarray, *, max_bad: int = 0) -> Reply:
        """Write the pixels of a batch into `out`, uint8 [N, H, W, C] of planes that lie one after the other; the same
        sample has the same in every process.

        Up to `max_bad` unreadable images in a row are replaced by the next readable one. Errors are returned, so that
        they reach the caller's process.
        """
        assert len(samples) <= len(out)
        reply = Reply([], [])
        # Made together: between two images each takes four times as long, as its code has left the processor's caches.
        generators = [None if key is None else generator(key, SAMPLES) for _, key in samples]
        try:
            for pixels, (i, _), rng in zip(out, samples, generators):
                for _ in range(max_bad):
                    try:
                        self.write(pixels, i, rng)
                        break
                    except UserError as error:
                        reply.bad.append(str(error))
                        i = (i + 1) % len(self)
                else:
                    self.write(pixels, i, rng)
                reply.labels.append(self.source.label(i))
        except UserError as error:
            hint = "`paddlevit prepare check` lists all that cannot be read"
            return reply._replace(error=type(error)(f"{error}; {hint}"))  # without its cause, which may not pickle
        except Exception:
            return reply._replace(error=RuntimeError(f"while reading data:\n{traceback.format_exc()}"))
        return reply
