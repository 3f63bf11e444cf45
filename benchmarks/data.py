"""The data path, stage by stage, against PaddleViT's (paddle_vision.py); loaders against decoders on their own."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
from tqdm import tqdm
from yacs.config import CfgNode

from benchmarks.paddle_vision import NAMES, Baseline
from benchmarks.rates import loader_rate
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import get_config, with_values
from paddlevit.data import build_eval_loader, build_train_loader
from paddlevit.data.opencv import read_part
from paddlevit.data.prepare import write_large_cuts

_BATCH = 32
_PLAIN = {
    **dict.fromkeys(["TRAIN.RAND_AUGMENT", "TRAIN.AUTO_AUGMENT", "TRAIN.THREE_AUGMENT"], False),
    "TRAIN.COLOR_JITTER": 0.0,
}
_BASELINE = "PaddleViT: "

Measures = dict[str, Callable[[], Any]]


@exit_code
def main(argv: list[str]) -> int:
    """Measure what `argv` asks for and print it; the exit code."""
    args = parse_args(argv)
    logging.getLogger("paddlevit").setLevel(logging.WARNING)  # every loader logs which package it uses
    sys.modules["cv2"].setNumThreads(0)  # as in workers: figures are per core
    with tempfile.TemporaryDirectory() as folder:
        if args.data_path is None:
            write_large_cuts(Path(folder), args.images)
        own = ["DATA.DATA_PATH", args.data_path or folder, "MODEL.NUM_CLASSES", 0, "DATA.NUM_WORKERS", 0]
        config = get_config(args.cfg, [*own, "DATA.BATCH_SIZE", min(_BATCH, args.images), *args.opts])
        with contextlib.closing(Baseline(config)) as baseline:
            stages = by_turns(chains(config, baseline, args.images), args.rounds)
            rates = by_turns(loaders(config, baseline, args.images, args.workers), args.rounds)
    rows = {name: {"cpu_ms": statistics.median(taken)} for name, taken in stages.items()}
    for name in NAMES:
        times = [theirs / ours for theirs, ours in zip(stages[_BASELINE + name], stages[name])]
        rows[name]["times_as_fast"] = statistics.median(times)
    found = {name: {key: statistics.median(r[key] for r in each) for key in each[0]} for name, each in rates.items()}
    print(json.dumps({"stages": rows, "loaders": found}) if args.json else table(rows, found))
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; raises UserError."""
    parser = Parser(prog="python -m benchmarks.data", description=__doc__)
    parser.flag("cfg", default="pit_s_224", metavar="FILE", help="yaml file or variant (default pit_s_224)")
    parser.flag("data_path", metavar="DIR", help="a data set (default: cuts of scikit-learn's photographs)")
    parser.flag("images", type=int, default=96, help="images per round (default 96)")
    parser.flag("rounds", type=int, default=5, help="all take turns in each (default 5)")
    parser.flag("workers", type=int, nargs="*", default=[], help="measure the loaders too, with so many processes")
    parser.flag("json", action="store_true", help="print one JSON object instead of a table")
    parser.flag("opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any configuration keys")
    return parser.parse_args(argv)


def by_turns(measures: Measures, rounds: int) -> dict[str, list[Any]]:
    """What each measure says, by turns, so that what else the machine does hits all; the first round is a warm-up."""
    taken: dict[str, list[Any]] = {name: [] for name in measures}
    for _ in tqdm(range(rounds + 1), unit="round", disable=None):
        for name, measure in measures.items():
            taken[name].append(measure())
    return {name: values[1:] for name, values in taken.items()}


def data_stages(config: CfgNode, images: int) -> Measures:
    """The stages of the data path for as many images, as a worker or, in the end, the main process does them."""
    full, cropped = build_train_loader(config), build_train_loader(with_values(config, _PLAIN))
    evaluation = build_eval_loader(config)
    samples = [(i % len(full.source), (0, 0, i)) for i in range(images)]
    planes = np.zeros((images, config.DATA.IMAGE_CHANNELS, *[config.DATA.IMAGE_SIZE] * 2), np.uint8)
    pixels = planes.transpose(0, 2, 3, 1)  # as in the memory that workers write to

    def on_device() -> None:
        for first in range(0, images, _BATCH):
            full.prepare(pixels[first : first + _BATCH], (first,))[0, 0, 0, 0].item()  # waits for the device

    return {
        "read": lambda: [full.source.read(i) for i, _ in samples],
        "decode by Pillow": lambda: [full.source.image(i) for i, _ in samples],
        "crop, flip": lambda: cropped.dataset.read(samples, pixels),
        "training": lambda: full.dataset.read(samples, pixels),
        "evaluation": lambda: evaluation.dataset.read([(i % len(evaluation.source), None) for i, _ in samples], pixels),
        "normalize, erase": on_device,
    }


def chains(config: CfgNode, baseline: Baseline, images: int) -> Measures:
    """CPU milliseconds per image of ours and, before each of NAMES, the baseline's."""
    source = build_train_loader(config).source
    whole = functools.partial(read_part, source, side=1 << 16, fast=config.TRAIN.FAST_JPEG)
    stages: dict[str, Callable[[], Any]] = {
        "decode for training": lambda: [whole(i % len(source), lambda *size: (0, 0, *size)) for i in range(images)],
        **data_stages(config, images),
    }

    def milliseconds(stage: Callable[[], Any]) -> float:
        start = time.process_time()
        stage()
        return (time.process_time() - start) / images * 1e3

    measures: Measures = {}
    for name, stage in stages.items():
        if name in NAMES:
            measures[_BASELINE + name] = functools.partial(baseline.milliseconds, name, images)
        measures[name] = functools.partial(milliseconds, stage)
    return measures


def loaders(config: CfgNode, baseline: Baseline, images: int, workers: Sequence[int]) -> Measures:
    """What rates.loader_rate says of each loader, ours and the baseline's, by number of workers; and of as many
    processes that make training images on their own, which no loader can exceed."""
    measures: Measures = {}
    for count in workers:
        changed = with_values(config, {"DATA.NUM_WORKERS": count})
        ours: dict[str, Callable[[], Iterable]] = {
            "training": functools.partial(build_train_loader(changed).epoch, 0),
            "evaluation": functools.partial(iter, build_eval_loader(changed)),
        }
        if count:
            measures[f"{count} workers, training, on their own"] = functools.partial(
                on_their_own, config, count, images
            )
        for name, batches in ours.items():
            theirs = functools.partial(baseline.loader_rate, name, count, config.DATA.BATCH_SIZE, 4 * images)
            measures[f"{count} workers, {_BASELINE}{name}"] = theirs
            measures[f"{count} workers, {name}"] = functools.partial(loader_rate, batches, 4 * images)
    return measures


def on_their_own(config: CfgNode, count: int, images: int) -> dict[str, float]:
    """Images per second of processes that make training images and keep none."""
    stage = data_stages(config, images)["training"]
    stage()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=lambda: [stage() for _ in range(8)]) for _ in range(count)]
    start = time.perf_counter()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return {"images/s": 8 * images * count / (time.perf_counter() - start)}


def table(rows: dict[str, dict[str, float]], rates: dict[str, dict[str, float]]) -> str:
    """The result as a person reads it."""
    lines = [f"{'':28}  CPU ms an image  images/s per core  x PaddleViT's"]
    for name, row in rows.items():
        times = f"{row['times_as_fast']:14.2f}" if "times_as_fast" in row else ""
        lines.append(f"{name:28}  {row['cpu_ms']:15.3f}  {1e3 / row['cpu_ms']:17,.0f}  {times}")
    lines += [f"{name:36} " + ", ".join(f"{v:,.2f} {k}" for k, v in rate.items()) for name, rate in rates.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
