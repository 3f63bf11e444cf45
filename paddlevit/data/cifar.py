"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official archives for Python, without executing pickles."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from paddlevit.data.sources import Source
from paddlevit.errors import MissingFileError, UserError

_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE


class _Layout(NamedTuple):
    archive: str
    folder: str
    files: Dict[str, List[str]]  # split -> files with images
    labels: bytes
    names_file: str
    names: bytes


_LAYOUTS = {
    "cifar10": _Layout(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        files={"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]},
        labels=b"labels",
        names_file="batches.meta",
        names=b"label_names",
    ),
    "cifar100": _Layout(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        files={"train": ["train"], "val": ["test"]},
        labels=b"fine_labels",
        names_file="meta",
        names=b"fine_label_names",
    ),
}


class CifarSource(Source):
    """Images of 32 x 32 pixels that are held in memory, 3 kB each."""

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, files: Sequence[Tuple[str, int]]
    ) -> None:
        """`pixels` uint8 [N, 32, 32, 3]; `files`: path and number of images of each file that they came from."""
        self.class_names = class_names
        self._pixels = pixels
        self._labels = labels
        self._files = files

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def read(self, i: int) -> bytes:
        return self._pixels[i].tobytes()

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self._pixels[i])

    def name(self, i: int) -> str:
        for path, count in self._files:
            if i < count:
                return f"{path}, image {i}"
            i -= count
        raise IndexError(i)


def open_cifar(path: Path, dataset: str, *, split: str) -> CifarSource:
    """The images of a split of 'cifar10' or 'cifar100' in the archive `path`, or in a folder.

    The folder is the unpacked archive, or holds it, packed or unpacked. Raises MissingFileError where nothing of that
    is there, and UserError where a file is damaged or holds anything but the data set.
    """
    layout = _LAYOUTS[dataset]
    pixels, labels, files = [], [], []
    for name, content in _contents(path, layout, split):
        if name.endswith(layout.names_file):
            class_names = [entry.decode("utf-8", "replace") for entry in _field(content, layout.names, name)]
            continue
        images = _images(_field(content, b"data", name), name)
        pixels.append(images)
        labels.append(np.asarray(_field(content, layout.labels, name), dtype=np.int32))
        files.append((name, len(images)))
        if labels[-1].shape != (len(images),) or not 0 <= labels[-1].min() <= labels[-1].max() < len(class_names):
            raise UserError(f"{name}: its labels are not one for each of {len(images)} images, 0 to {len(class_names) - 1}")
    return CifarSource(np.concatenate(pixels), np.concatenate(labels), class_names, files=files)
