"""tools/benchmark.py data: images/s of the data path, stage by stage, beside a chain as PaddleViT has it."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

_GENERATED = 96


@exit_code
def data_command(argv: list[str]) -> int:
    """Measure what `argv` asks for and print it; the exit code."""
    parser = Parser(prog="benchmark.py data", description="Images per second of the data path, per core and stage.")
    parser.flag("cfg", default="pit_s_224", metavar="FILE", help="yaml file or variant (default: pit_s_224)")
    parser.flag("data_path", metavar="DIR", help="a data set (default: photographs that are made up)")
    parser.flag("images", type=int, default=_GENERATED, help=f"images a round (default: {_GENERATED})")
    parser.flag("rounds", type=int, default=5, help="rounds; chains take turns in each (default: 5)")
    parser.flag("workers", type=int, nargs="*", default=[], help="measure the loaders too, with so many processes")
    parser.flag("json", action="store_true", help="print one JSON object instead of a table")
    parser.flag("opts", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="any configuration keys")
    args = parser.parse_args(argv)
    for name in ("images", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"-{name} is {getattr(args, name)}, allowed: 1 and above")
    import paddle

    from paddlevit.commands.benchmark_chains import data_config, measured
    from paddlevit.commands.photographs import write_photographs

    paddle.set_device("cpu" if not paddle.device.cuda.device_count() else "gpu")
    with tempfile.TemporaryDirectory() as folder:
        if args.data_path is None:
            write_photographs(Path(folder), args.images)
        config = data_config(args.cfg, args.data_path or folder, args.opts)
        with _without_log():
            result = measured(config, args.images, args.rounds, args.workers)
    print(json.dumps(result) if args.json else _table(result))
    return 0


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Every loader says in the log which package it uses; here the heading does."""
    package = logging.getLogger("paddlevit")
    level = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(level)


def _table(result: dict[str, Any]) -> str:
    taken = {row["name"]: row["milliseconds"] for row in result["rows"]}
    lines = [result["description"], f"{'':28}  {'ms':>7}  {'images/s a core':>15}  {'x yardstick':>11}"]
    for row in result["rows"]:
        ratio = f"{row['ratio']:11.2f}" if row["ratio"] else ""
        lines.append(f"{row['name']:28}  {row['milliseconds']:7.3f}  {1e3 / row['milliseconds']:15,.0f}  {ratio}")
    limit = taken.get("decode for training", taken["decode by Pillow"])
    lines.append(f"crop, flip reaches {limit / taken['crop, flip']:.0%} of what decoding alone allows")
    for count, rates in result["loaders"].items():
        lines.append(f"loaders with {count} worker processes")
        for name, rate in rates.items():
            lines.append("  {:24} {:7,.0f} images/s, {:6.2f} CPU ms an image".format(name, *rate.values()))
    return "\n".join(lines)
