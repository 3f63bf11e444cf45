"""What `benchmark.py data` measures: the data path, stage by stage, beside a chain as PaddleViT has it."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Callable, NamedTuple

import numpy as np
from tqdm import tqdm
from yacs.config import CfgNode

from paddlevit.commands.rates import Chain, loader_rate, milliseconds
from paddlevit.commands.yardstick import NAMES, Yardstick
from paddlevit.config import get_config
from paddlevit.data import build_eval_loader, build_train_loader, open_source, resizer
from paddlevit.data.dataset import ImageDataset, with_generators
from paddlevit.data.decode import decode
from paddlevit.data.sources import Source
from paddlevit.data.transforms import build_eval_transform

_BATCH = 32
_YARDSTICK = "yardstick: "
_WHOLE = "decode for training"

Measures = dict[str, Callable[[], Any]]


class Row(NamedTuple):
    """What a chain took: CPU milliseconds per image, and how many times as long the chain that it is compared with;
    medians of all rounds."""

    name: str
    milliseconds: float
    against: str | None = None
    ratio: float | None = None


def data_config(name: str, data_path: str, opts: list[str]) -> CfgNode:
    """The configuration of a benchmark: images one by one, in this process, labels of any number of classes."""
    own = ["DATA.DATA_PATH", str(data_path), "MODEL.NUM_CLASSES", 0, "DATA.NUM_WORKERS", 0, "DATA.BATCH_SIZE", 1]
    return get_config(name, [*own, *opts])


def measured(config: CfgNode, images: int, rounds: int, workers: list[int]) -> dict[str, Any]:
    """Rows of the table, what rates.loader_rate says per number of workers and loader, and the heading."""
    source = open_source(config, "train")
    with contextlib.closing(Yardstick(config)) as yardstick:
        taken = _by_turns(_measures(config, source, yardstick, images), rounds)
        rates = _by_turns(_loaders(config, source, yardstick, images, workers), rounds) if workers else {}
    loaders: dict[int, dict[str, Any]] = {count: {} for count in workers}
    for name, results in rates.items():
        count, loader = name.split(" workers, ")
        loaders[int(count)][loader] = {key: statistics.median(rate[key] for rate in results) for key in results[0]}
    rows = [_row(name, taken)._asdict() for name in taken]
    return {"rows": rows, "loaders": loaders, "description": _described(config, source)}


def _measures(config: CfgNode, source: Source, yardstick: Yardstick, images: int) -> Measures:
    """CPU milliseconds per image of what is measured, by name; a chain after the yardstick's of the same name."""
    numbers = [i % len(source) for i in range(images)]
    batches = [numbers[first : first + _BATCH] for first in range(0, images, _BATCH)]
    measures: Measures = {}
    for name, chain in _chains(config, source).items():
        if name in NAMES:
            measures[_YARDSTICK + name] = functools.partial(yardstick.milliseconds, name, batches)
        measures[name] = functools.partial(milliseconds, chain, batches)
    return measures


def _by_turns(measures: Measures, rounds: int) -> dict[str, list[Any]]:
    """What each measure says, by turns, so that what else the machine does hits all."""
    taken: dict[str, list[Any]] = {name: [] for name in measures}
    with tqdm(total=rounds * len(measures), unit="measurement", disable=None) as bar:
        for _ in range(rounds):
            for name, measure in measures.items():
                bar.set_description(name)
                taken[name].append(measure())
                bar.update()
    return taken


def _chains(config: CfgNode, source: Source) -> dict[str, Chain]:
    size = config.DATA.IMAGE_SIZE
    plain = ["TRAIN.RAND_AUGMENT", False, "TRAIN.AUTO_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0]
    plain += ["TRAIN.THREE_AUGMENT", False, "TRAIN.RANDOM_ERASE_PROB", 0.0]
    cropped = build_train_loader(_with(config, plain))
    full = build_train_loader(config)
    evaluated = ImageDataset(source, build_eval_transform(config))
    pixels = np.zeros((_BATCH, size, size, 3), dtype=np.uint8)
    return {
        "read": _each(source.read),
        "decode by Pillow": _each(lambda i: decode(source.read(i), "")),
        **_decoding(config, source),
        "crop, flip": _batch_of(cropped),
        "training": _batch_of(full),
        "evaluation": lambda batch: _collated([evaluated[i, None] for i in batch]),
        "collate": lambda batch: np.stack(list(pixels[: len(batch)])),
        "transfer, normalise": lambda batch: _on_device(full, pixels[: len(batch)]),
        "transfer, normalise, erase": lambda batch: _on_device(full, pixels[: len(batch)], erase=True),
    }


def _with(config: CfgNode, opts: list[Any]) -> CfgNode:
    config = config.clone()
    config.defrost()
    config.merge_from_list(opts)
    config.freeze()
    return config


def _decoding(config: CfgNode, source: Source) -> dict[str, Chain]:
    """Whole images as training decodes them: what no chain can be faster than that needs all of an image."""
    if resizer(config.TRAIN.RESIZER) == "pillow":
        return {}
    import cv2

    from paddlevit.data.opencv import read_part

    cv2.setNumThreads(0)  # as in the processes that read data: figures are per core

    def whole(width: int, height: int) -> tuple[int, int, int, int]:
        return 0, 0, width, height

    side, fast = 1 << 16, config.TRAIN.FAST_JPEG  # no image is decoded at less than its size
    return {_WHOLE: _each(lambda i: read_part(source, i, whole, side=side, fast=fast))}


def _each(function: Callable[[int], Any]) -> Chain:
    """The images one by one, nothing kept."""

    def chain(batch: list[int]) -> None:
        for i in batch:
            function(i)

    return chain


def _batch_of(loader: Any) -> Chain:
    """Batches as a worker of the loader makes them."""
    dataset = loader.dataset
    return lambda batch: _collated([dataset[drawn] for drawn in with_generators([(i, (0, 0, i)) for i in batch])])


def _collated(samples: list[tuple[np.ndarray, np.int64]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*samples)
    return np.stack(images), np.asarray(labels)


def _on_device(loader: Any, pixels: np.ndarray, *, erase: bool = False) -> None:
    images = loader.normalize(pixels)
    if erase and loader.erase is not None:
        images = loader.erase(images, (0, 0, 0, 0))
    images[0, 0, 0, 0].item()  # waits for the device


def _row(name: str, taken: dict[str, list[float]]) -> Row:
    middle = statistics.median(taken[name])
    if name not in NAMES:
        return Row(name, middle)
    against = _YARDSTICK + name
    return Row(name, middle, against, statistics.median(a / b for a, b in zip(taken[against], taken[name])))


def _loaders(config: CfgNode, source: Source, yardstick: Yardstick, images: int, workers: list[int]) -> Measures:
    """What rates.loader_rate says of each loader, the yardstick's and ours, by number of workers and name."""
    batch_size = min(_BATCH, len(source))
    measures: Measures = {}
    for count in workers:
        options = ["DATA.NUM_WORKERS", count, "DATA.BATCH_SIZE", batch_size]
        loader = build_train_loader(_with(config, options))
        evaluation = build_eval_loader(_with(config, options))
        loaders: dict[str, Callable[[], Iterable]] = {
            "training": functools.partial(loader.epoch, 0),
            "evaluation": functools.partial(iter, evaluation),
        }
        for name, batches in loaders.items():
            theirs = functools.partial(yardstick.loader_rate, name, count, batch_size, 4 * images)
            measures[f"{count} workers, {_YARDSTICK}{name}"] = theirs
            measures[f"{count} workers, {name}"] = functools.partial(loader_rate, batches, 4 * images)
    return measures


def _described(config: CfgNode, source: Source) -> str:
    """The images, and the packages that make them."""
    sizes = [len(source.read(i)) for i in range(min(len(source), 100))]
    side = config.DATA.IMAGE_SIZE
    images = f"{len(source)} images, {statistics.mean(sizes) / 1e3:.0f} kB on average, to {side} x {side} pixels"
    pillow = f"Pillow {version('pillow')}"
    if resizer(config.TRAIN.RESIZER) == "pillow":
        return f"{images}, by {pillow}"
    import cv2

    opencv = f"OpenCV {cv2.__version__}"
    decoder = f"simplejpeg {version('simplejpeg')} and " if find_spec("simplejpeg") else ""
    return f"{images}, in training by {decoder}{opencv}, otherwise by {pillow}"
