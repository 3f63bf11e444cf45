"""Batches on the device, normalised and ready for the network."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor
from paddle.utils.dlpack import from_dlpack
from PIL import Image

from paddlevit.data.dataset import ImageDataset
from paddlevit.data.samplers import EvalBatchSampler, TrainBatchSampler
from paddlevit.data.stream import BatchStream

Erase = Callable[[Tensor, tuple[int, ...]], Tensor]

_THUMBNAIL_SIDE = 160
_TINY_SIDE = 64


class Normalize:
    """Pixels to what a network sees: (x / 255 - mean) / std per channel, for means and deviations in 0 to 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, images: Tensor) -> Tensor:
        """float32 [N, C, H, W] of uint8 [N, H, W, C]."""
        if images.place.is_cpu_place():
            return self._on_cpu(images.numpy())
        # Channel by channel with plain numbers: broadcasting [1, C, 1, 1] takes longer.
        channels = zip(self.mean, self.std)
        planes = [(images[..., c].astype("float32") - 255.0 * m) / (255.0 * s) for c, (m, s) in enumerate(channels)]
        return paddle.stack(planes, axis=1)

    def _on_cpu(self, pixels: np.ndarray) -> Tensor:
        """A plane at a time, which stays in the processor's cache: a third of the time of Paddle's operators."""
        num, height, width, channels = pixels.shape
        images = np.empty((num, channels, height, width), dtype=np.float32)
        scales = [np.float32(1.0 / (255.0 * s)) for s in self.std]
        offsets = [np.float32(m / s) for m, s in zip(self.mean, self.std)]
        for image, out in zip(pixels, images):
            for c, plane in enumerate(out):
                plane[...] = image[..., c]
                plane *= scales[c]
                plane -= offsets[c]
        return from_dlpack(images)


class TrainLoader:
    """Batches of augmented images of one process of several, endlessly reproducible: a batch depends on seed, epoch and
    step, not on the number of workers, nor on what was read before.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: TrainBatchSampler,
        *,
        normalize: Normalize,
        erase: Erase | None = None,
        **stream: Any,
    ) -> None:
        """`stream`: the keyword arguments of a BatchStream."""
        self.dataset = dataset
        self.source = dataset.source
        self.normalize = normalize
        self.erase = erase
        self._sampler = sampler
        self._stream = BatchStream(dataset, **stream)

    @property
    def num_images(self) -> int:
        """Images to train on, of all processes together."""
        return len(self.source)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; those of all processes at once are one step."""
        return len(self._sampler)

    @property
    def batch_size(self) -> int:
        """Images per process and step."""
        return self._sampler.batch_size

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each class."""
        return self.source.class_names

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [N, C, H, W] and labels int64 [N] of each step of an epoch, counted from 0, from `first_step`.

        An epoch may be left at any step; the next one that is asked for ends it. Raises UserError, naming the image,
        where one cannot be read, or where more were replaced than may be.
        """
        batches = self._stream.run(self._sampler.batches(epoch, first_step))
        for step, (images, labels) in enumerate(batches, first_step):
            images = self.normalize(images)
            if self.erase is not None:
                images = self.erase(images, (self._sampler.seed, epoch, step, self._sampler.rank))
            yield images, labels

    def names(self, epoch: int, step: int) -> list[str]:
        """Paths of the images of a batch of this process, as if all could be read."""
        return [self.source.name(index) for index, _ in next(self._sampler.batches(epoch, step))]


class EvalLoader:
    """Batches of this process's share of the images: those of all processes together are every image once."""

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: EvalBatchSampler,
        *,
        normalize: Normalize,
        **stream: Any,
    ) -> None:
        """`stream`: the keyword arguments of a BatchStream."""
        self.source = dataset.source
        self._sampler = sampler
        self._normalize = normalize
        self._stream = BatchStream(dataset, **stream)

    @property
    def num_images(self) -> int:
        """Images of all processes together."""
        return len(self.source)

    @property
    def indices(self) -> np.ndarray:
        """Which images this process has, in the order of its batches."""
        return self._sampler.indices

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each class."""
        return self.source.class_names

    def __len__(self) -> int:
        """Batches of this process; there may be none."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [N, C, H, W] and labels int64 [N] of each batch."""
        for images, labels in self._stream.run(self._sampler):
            yield self._normalize(images), labels

    @property
    def common_batches(self) -> int:
        """Batches that every process has."""
        return self._sampler.common_batches

    def thumbnail(self, i: int) -> bytes:
        """The i-th image of all, made small, as a PNG or JPEG file. Raises UserError where it cannot be read."""
        image = self.source.image(i)
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "PNG" if max(image.size) <= _TINY_SIDE else "JPEG")
        return file.getvalue()
