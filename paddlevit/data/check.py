"""Reads all images of a source, in several processes, and names those that cannot be read."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import warnings
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from paddlevit.data.sources import Source
from paddlevit.errors import UserError

_IMAGES_PER_TASK = 32


class Checked(NamedTuple):
    """Some images that were looked at: how many, and per bad one its number and what is wrong with it."""

    num_images: int
    bad: list[str]


def check_images(source: Source, *, num_workers: int) -> Iterator[Checked]:
    """Decode every image, as training does it. Raises UserError where a process that decodes dies."""
    firsts = range(0, len(source), _IMAGES_PER_TASK)
    tasks = [range(first, min(first + _IMAGES_PER_TASK, len(source))) for first in firsts]
    if num_workers == 0:
        _keep(source)
        yield from map(_check, tasks)
        return
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _keep, (source,)) as pool:
        done = 0
        try:
            for checked in pool.map(_check, tasks):
                done += checked.num_images
                yield checked
        except BrokenProcessPool:
            raise UserError(
                f"a process that decodes images has died at one of the {num_workers * _IMAGES_PER_TASK} images from "
                f"{source.name(min(done, len(source) - 1))} on, often as memory ran out: use fewer -workers"
            ) from None


_source: Source | None = None


def _keep(source: Source) -> None:
    """Hold the source in this process: with every task it would be sent again."""
    global _source
    _source = source
    warnings.simplefilter("ignore")  # of Pillow, about files that can be read all the same


def _check(numbers: range) -> Checked:
    assert _source is not None
    bad = []
    for i in numbers:
        try:
            _source.image(i)
        except UserError as error:
            bad.append(str(error))
    return Checked(len(numbers), bad)
