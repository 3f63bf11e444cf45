"""tools/benchmark.py data: images/s of the data path, stage by stage, beside a chain as PaddleViT has it."""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import paddle
from paddle.io.dataloader.collate import default_collate_fn
from yacs.config import CfgNode

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.commands.photographs import write_photographs
from paddlevit.commands.yardstick import YardstickDataset, evaluation_chain, training_chain
from paddlevit.config import get_config
from paddlevit.data import build_eval_loader, build_train_loader, open_source, resizer
from paddlevit.data.dataset import ImageDataset
from paddlevit.data.decode import decode
from paddlevit.data.sources import Source
from paddlevit.data.transforms import build_eval_transform
from paddlevit.errors import UserError

_GENERATED = 96
_BATCH = 32

Chain = Callable[[List[int]], Any]  # does something with the images of these numbers, a batch


class Row(NamedTuple):
    """What a chain took: CPU milliseconds per image, the median of all rounds, and the chain to compare it with."""

    name: str
    milliseconds: float
    against: Optional[str] = None


@exit_code
def data_command(argv: List[str]) -> int:
    """Measure what `argv` asks for and print it; the exit code."""
    parser = Parser(prog="benchmark.py data", description="Images per second of the data path, per core and stage.")
    parser.flag("cfg", default="pit_s_224", metavar="FILE", help="yaml file or variant (default: pit_s_224)")
    parser.flag("data_path", metavar="DIR", help="a data set (default: photographs that are made up)")
    parser.flag("images", type=int, default=_GENERATED, help=f"images a round (default: {_GENERATED})")
    parser.flag("rounds", type=int, default=5, help="rounds; chains take turns in each (default: 5)")
    parser.flag("workers", type=int, nargs="*", default=[], help="measure the loaders too, with so many processes")
    parser.flag("json", action="store_true", help="print one JSON object instead of a table")
    parser.flag("opts", nargs="+", default=[], metavar="KEY VALUE", help="any configuration keys")
    args = parser.parse_args(argv)
    for name in ("images", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"-{name} is {getattr(args, name)}, allowed: 1 and above")
    paddle.set_device("cpu" if not paddle.device.cuda.device_count() else "gpu")
    with tempfile.TemporaryDirectory() as folder:
        if args.data_path is None:
            write_photographs(Path(folder), args.images)
        config = _config(args.cfg, args.data_path or folder, args.opts)
        source = open_source(config, "train")
        rows = _measured(_chains(config, source), source, images=args.images, rounds=args.rounds)
        rates = {count: dict(_loader_rates(config, source, count, args.images)) for count in args.workers}
        result = {"rows": [row._asdict() for row in rows], "loaders": rates, "description": _described(config, source)}
    print(json.dumps(result) if args.json else _table(result))
    return 0


def _config(name: str, data_path: str, opts: List[str]) -> CfgNode:
    own = ["DATA.DATA_PATH", str(data_path), "MODEL.NUM_CLASSES", 0, "DATA.NUM_WORKERS", 0, "DATA.BATCH_SIZE", 1]
    return get_config(name, [*own, *opts])


def _chains(config: CfgNode, source: Source) -> Dict[str, Tuple[Chain, Optional[str]]]:
    """Per name the chain, and the name of the one to compare it with."""
    size = config.DATA.IMAGE_SIZE
    plain = ["TRAIN.RAND_AUGMENT", False, "TRAIN.AUTO_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0]
    plain += ["TRAIN.THREE_AUGMENT", False, "TRAIN.RANDOM_ERASE_PROB", 0.0]
    cropped = build_train_loader(_with(config, plain))
    full = build_train_loader(config)
    evaluated = ImageDataset(source, build_eval_transform(config))
    pixels = np.zeros((_BATCH, size, size, 3), dtype=np.uint8)
    return {
        "read": (_each(source.read), None),
        "decode by Pillow": (_each(lambda i: decode(source.read(i), "")), None),
        **_opencv_decoding(config, source),
        "yardstick: crop, flip": (_yardstick(source, training_chain(size, full=False)), None),
        "crop, flip": (_batch_of(cropped), "yardstick: crop, flip"),
        "yardstick: training": (_yardstick(source, training_chain(size, full=True)), None),
        "training": (_batch_of(full), "yardstick: training"),
        "yardstick: evaluation": (_yardstick(source, evaluation_chain(size, config.DATA.CROP_PCT)), None),
        "evaluation": (lambda batch: _collated([evaluated[i, None] for i in batch]), "yardstick: evaluation"),
        "collate": (lambda batch: np.stack(list(pixels[: len(batch)])), None),
        "transfer, normalise": (lambda batch: _on_device(full, pixels[: len(batch)]), None),
        "transfer, normalise, erase": (lambda batch: _on_device(full, pixels[: len(batch)], erase=True), None),
    }


def _with(config: CfgNode, opts: List[Any]) -> CfgNode:
    config = config.clone()
    config.defrost()
    config.merge_from_list(opts)
    config.freeze()
    return config


def _opencv_decoding(config: CfgNode, source: Source) -> Dict[str, Tuple[Chain, Optional[str]]]:
    if resizer(config.TRAIN.RESIZER) == "pillow":
        return {}
    import cv2

    from paddlevit.data.parts import read_part

    cv2.setNumThreads(0)  # as in the processes that read data: figures are per core

    def part(width: int, height: int) -> Tuple[int, int, int, int]:
        return 0, 0, 1, 1  # all the same it decodes the whole

    return {"decode by OpenCV": (_each(lambda i: read_part(source, i, part, side=1)), None)}


def _each(function: Callable[[int], Any]) -> Chain:
    """The images one by one, nothing kept."""

    def chain(batch: List[int]) -> None:
        for i in batch:
            function(i)

    return chain


def _yardstick(source: Source, chain: Callable) -> Chain:
    dataset = YardstickDataset(source, chain)
    return lambda batch: default_collate_fn([dataset[i] for i in batch])


def _batch_of(loader: Any) -> Chain:
    """Batches as a worker of the loader makes them."""
    dataset = loader.dataset
    return lambda batch: _collated([dataset[i, (0, 0, i)] for i in batch])


def _collated(samples: List[Tuple[np.ndarray, np.int64]]) -> Tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*samples)
    return np.stack(images), np.asarray(labels)


def _on_device(loader: Any, pixels: np.ndarray, *, erase: bool = False) -> None:
    images = loader.normalize(paddle.to_tensor(pixels))
    if erase and loader.erase is not None:
        images = loader.erase(images, (0, 0, 0, 0))
    images[0, 0, 0, 0].item()  # waits for the device


def _measured(chains: Dict[str, Tuple[Chain, Optional[str]]], source: Source, *, images: int, rounds: int) -> List[Row]:
    """The chains by turns, so that what else the machine does hits all of them."""
    numbers = [i % len(source) for i in range(images)]
    batches = [numbers[first : first + _BATCH] for first in range(0, images, _BATCH)]
    taken: Dict[str, List[float]] = {name: [] for name in chains}
    for _ in range(rounds):
        for name, (chain, _against) in chains.items():
            start = time.process_time()
            for batch in batches:
                chain(batch)
            taken[name].append((time.process_time() - start) / images * 1e3)
    return [Row(name, statistics.median(taken[name]), against) for name, (_, against) in chains.items()]


def _loader_rates(config: CfgNode, source: Source, workers: int, images: int) -> Iterator[Tuple[str, float]]:
    """Images per second that arrive from each loader, and the CPU milliseconds that one takes in all processes."""
    size = config.DATA.IMAGE_SIZE
    chains = training_chain(size, full=True), evaluation_chain(size, config.DATA.CROP_PCT)
    yardsticks = [
        paddle.io.DataLoader(YardstickDataset(source, chain), batch_size=_BATCH, num_workers=workers, shuffle=True)
        for chain in chains
    ]
    options = ["DATA.NUM_WORKERS", workers, "DATA.BATCH_SIZE", min(_BATCH, len(source))]
    loader = build_train_loader(_with(config, options))
    evaluation = build_eval_loader(_with(config, options))
    for name, batches in (
        ("yardstick: training", lambda: yardsticks[0]),
        ("training", lambda: loader.epoch(0)),
        ("yardstick: evaluation", lambda: yardsticks[1]),
        ("evaluation", lambda: evaluation),
    ):
        yield from _rate(name, batches, 4 * images)


def _rate(name: str, batches: Callable[[], Any], images: int) -> Iterator[Tuple[str, float]]:
    for _ in batches():
        pass  # workers start, files come into memory
    start, used, done = time.perf_counter(), _cpu_seconds(), 0
    while done < images:
        for _, labels in batches():
            done += len(labels)
    yield f"{name}: images/s", done / (time.perf_counter() - start)
    yield f"{name}: CPU ms an image", (_cpu_seconds() - used) / done * 1e3


def _cpu_seconds() -> float:
    """What this process and its children, dead or alive, have used."""
    own = os.times()
    return sum(own[:4]) + sum(_child_seconds(entry) for entry in Path("/proc").glob("[0-9]*/stat"))


def _child_seconds(stat: Path) -> float:
    try:
        fields = stat.read_text().rsplit(")", 1)[1].split()
    except OSError:  # it has just ended
        return 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks if int(fields[1]) == os.getpid() else 0.0


def _described(config: CfgNode, source: Source) -> str:
    sizes = [len(source.read(i)) for i in range(min(len(source), 100))]
    side = config.DATA.IMAGE_SIZE
    return f"{len(source)} images, {statistics.mean(sizes) / 1e3:.0f} kB on average, to {side} x {side} pixels"


def _table(result: Dict[str, Any]) -> str:
    taken = {row["name"]: row["milliseconds"] for row in result["rows"]}
    lines = [result["description"], f"{'':28}  {'ms':>7}  {'images/s a core':>15}  {'x yardstick':>11}"]
    for row in result["rows"]:
        ratio = f"{taken[row['against']] / row['milliseconds']:11.2f}" if row["against"] else ""
        lines.append(f"{row['name']:28}  {row['milliseconds']:7.3f}  {1e3 / row['milliseconds']:15,.0f}  {ratio}")
    limit = taken.get("decode by OpenCV", taken["decode by Pillow"])
    lines.append(f"crop, flip reaches {limit / taken['crop, flip']:.0%} of what decoding alone allows")
    for count, rates in result["loaders"].items():
        lines.append(f"loaders with {count} worker processes")
        lines += [f"  {name:34}  {value:10,.2f}" for name, value in rates.items()]
    return "\n".join(lines)
