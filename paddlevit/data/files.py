"""Images without labels, as a person names them: files, and folders of any depth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from paddlevit.data.dataset import Drawn, ImageDataset
from paddlevit.data.sources import IMAGE_SUFFIXES, Source
from paddlevit.errors import MissingFileError, UserError

READ, UNREADABLE = 0, 1


def find_images(named: Iterable[str]) -> Iterator[str]:
    """The files that are named, and, sorted, the JPEG and PNG files in the folders that are, and below them.

    Hidden ones are left out. A folder without images is given as if it were a file, so that reading it fails.
    """
    for name in named:
        found = sorted(_below(name)) if os.path.isdir(name) else []
        yield from found or [name]


def _below(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


class FileSource(Source):
    """Images by their paths. Nothing is known of their classes: every label is READ."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.class_names: list[str] = []
        self._paths = paths

    @property
    def labels(self) -> np.ndarray:
        return np.full(len(self._paths), READ)

    def label(self, i: int) -> int:
        return READ

    def name(self, i: int) -> str:
        return self._paths[i]

    def read(self, i: int) -> bytes:
        name = self._paths[i]
        try:
            with open(name, "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise MissingFileError(f"there is no file {name}") from None
        except IsADirectoryError:
            raise UserError(f"the folder {name} holds no JPEG or PNG file") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class FileDataset(ImageDataset):
    """Transformed images, with the label READ. One that cannot be read is black and UNREADABLE: the others go on."""

    def __getitem__(self, drawn: Drawn) -> tuple[np.ndarray, np.int64]:
        try:
            return super().__getitem__(drawn)
        except UserError:
            return self.transform(Image.new(self.mode, (1, 1)), None), np.int64(UNREADABLE)
