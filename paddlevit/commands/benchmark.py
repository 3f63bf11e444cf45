"""tools/benchmark.py: how fast a model is, or the path of its images from their files to batches."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import get_config, with_values
from paddlevit.errors import UserError
from paddlevit.runtime.streams import only_results

ENGINES = ("auto", "paddle", "program", "onnx", "openvino")
Step = Callable[[], Any]

_SECONDS = 0.2  # that a measurement lasts at least, so that a small model's steps are many
_BATCH = 32


@exit_code
def main(argv: list[str]) -> None:
    """Run the benchmark that the first word of `argv` names."""
    args = _parser().parse_args(argv)
    with only_results() as out:
        print({"model": _model, "data": _data}[args.command](args), file=out)


def _parser() -> Parser:
    parser = Parser(
        description="Warm up, then measure; medians are printed.",
        examples=(
            "model -cfg pit_s_224 -engine paddle openvino",
            "model -cfg pit_digits -train -batch_size 64",
            "data -data_path data/imagenet -workers 1 2 4",
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = commands.add_parser("model", help="the speed of a model, or of its exports")
    flag = model.flag
    flag("cfg", required=True)
    flag("train", action="store_true", help="a training step (forward, loss, backward, AdamW), not inference")
    flag("engine", nargs="+", default=["paddle"], choices=ENGINES, help="the model itself, or exported; by turns")
    flag("precision", default="f32", choices=("auto", "f32", "bf16", "int8"), help="of -engine openvino (auto: f32)")
    flag("batch_size", least=1, default=8, help="images per step (default 8)")
    flag("threads", type=int, least=1, default=1, help="threads of a CPU (default 1)")
    flag("device", default="cpu", help="cpu (default), gpu, auto, custom:NAME")
    flag("amp")
    data = commands.add_parser("data", help="the speed of the training images, from files to batches")
    flag = data.flag
    flag("cfg", default="pit_s_224", help="yaml file or variant (default pit_s_224)")
    flag("data_path", help="a data set (default: cuts of scikit-learn's photographs)")
    flag("images", type=int, least=1, default=96, help="such cuts (default 96)")
    flag("workers", type=int, nargs="+", default=[0], help="decoding processes, by turns (default 0: this one decodes)")
    for each in (model, data):
        each.flag("rounds", type=int, least=1, default=9, help="(default 9)")
        each.flag("json")
        each.opts()
    return parser


def by_turns(steps: Mapping[Any, Step], rounds: int, clock: Callable[[], float]) -> dict[Any, list[float]]:
    """Seconds of each step in every round, by turns, so that what else the machine does hits all."""

    def seconds(step: Step, repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            step()
        return (clock() - start) / repeats

    repeats = {}
    for name, step in steps.items():
        step()
        repeats[name] = max(1, round(_SECONDS / max(seconds(step, 1), 1e-6)))
    taken: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step, repeats[name]))
    return taken


def _model(args: argparse.Namespace) -> str:
    args.precision = args.precision.replace("auto", "f32")
    if args.train and args.engine != ["paddle"]:
        raise UserError(f"-engine must be paddle with -train, got {' '.join(args.engine)}")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # Paddle reads it when it is imported
    import paddle

    from paddlevit.export.engines import choose_engine
    from paddlevit.flops import count
    from paddlevit.models import build_model
    from paddlevit.runtime.process import check_amp, choose_device, half_precision

    paddle.set_device(choose_device(args.device))
    if args.amp:
        check_amp("float16")
        args.amp = half_precision("float16")
    engines = [engine if engine == "program" else choose_engine(engine) for engine in args.engine]
    if args.precision != "f32" and engines != ["openvino"]:
        raise UserError(f"-precision {args.precision} of -engine {' '.join(engines)}, allowed: f32 (others: openvino)")
    config = get_config(args.cfg, args.opts)
    model, side = build_model(config), config.DATA.IMAGE_SIZE
    macs = count(model, side)["macs"] * args.batch_size * (3 if args.train else 1)
    images = paddle.randn([args.batch_size, config.DATA.IMAGE_CHANNELS, side, side])
    if args.train and not config.MODEL.NUM_CLASSES:
        raise UserError("MODEL.NUM_CLASSES must be 1 or more with -train, got 0")
    if args.train:
        steps = {"paddle": training_step(model, images, config.MODEL.NUM_CLASSES, amp=args.amp)}
    else:
        how = {"threads": args.threads, "amp": args.amp, "precision": args.precision}
        steps = {engine: inference_step(engine, model, images, **how) for engine in engines}
    own = args.threads == 1 and paddle.device.get_device() == "cpu"  # then others on the machine do not count
    seconds = by_turns(steps, args.rounds, time.process_time if own else synchronized)
    return _told(args, config.MODEL.NAME, macs, {engine: statistics.median(each) for engine, each in seconds.items()})


def _told(args: argparse.Namespace, name: str, macs: int, seconds: dict[str, float]) -> str:
    """A table, or one JSON object, of the seconds of a step by each engine."""
    from paddlevit.runtime.process import peak_memory

    rows = {
        engine: {"seconds": each, "images_per_sec": args.batch_size / each, "macs_per_sec": macs / each}
        for engine, each in seconds.items()
    }
    if args.json:
        spec = {key: getattr(args, key) for key in ("train", "batch_size", "threads", "device", "amp", "precision")}
        return json.dumps({"name": name, **spec, "memory_mib": peak_memory(), "engines": rows})
    what = f"{'training step' if args.train else 'inference'}, batch {args.batch_size}, {args.threads} thread(s)"
    title = f"{name}, {what}; {macs / 1e9:.2f} GMACs a step; {peak_memory():.0f} MiB at most"
    line = "{:9} {seconds:.4f} s/step {images_per_sec:9.1f} images/s {:7.1f} GMACs/s"
    return "\n".join([title, *(line.format(e, row["macs_per_sec"] / 1e9, **row) for e, row in rows.items())])


def synchronized() -> float:
    """Seconds, once the device has done what it was told to."""
    import paddle

    if paddle.device.get_device() != "cpu":
        paddle.device.synchronize()
    return time.perf_counter()


def training_step(model: Any, images: Any, num_classes: int, *, amp: bool = False) -> Step:
    """Forward, loss, backward, AdamW."""
    import paddle
    import paddle.nn.functional as F

    from paddlevit.training.gradients import LossScale

    labels = paddle.randint(0, num_classes, [images.shape[0]])
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters(), weight_decay=0.05)
    scale = LossScale(dynamic=amp)
    model.train()

    def step() -> None:
        with paddle.amp.auto_cast(enable=amp):
            logits = model(images)
            loss = sum(F.cross_entropy(each, labels) for each in (logits if isinstance(logits, tuple) else (logits,)))
        if amp:
            scale.scaled(loss).backward()
            scale.unscale([param.grad_ for param in model.parameters() if param.grad_ is not None])
        else:
            loss.backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def inference_step(
    engine: str, model: Any, images: Any, *, threads: int = 1, amp: bool = False, precision: str = "f32"
) -> Step:
    """A forward pass by one of ENGINES; `amp` is for "paddle", `precision` for "openvino"."""
    import paddle

    from paddlevit.export.engines import compiled

    model.eval()

    def step() -> None:
        with paddle.no_grad(), paddle.amp.auto_cast(enable=amp):
            model(images)

    if engine == "paddle":
        return step
    pixels = images.numpy()
    fmt, ranges = "paddle" if engine == "program" else engine, [pixels] if precision == "int8" else None
    predict = compiled(model, pixels.shape[1:], fmt, threads=threads, precision=precision, calibration=ranges)
    if predict.precision != precision:
        raise UserError(f"-precision {precision}: this processor has no bfloat16")
    return lambda: predict(pixels)


def _data(args: argparse.Namespace) -> str:
    from paddlevit.data import build_train_loader
    from paddlevit.data.prepare import write_large_cuts

    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(0)  # as in workers
    logging.getLogger("paddlevit").setLevel(logging.WARNING)  # every loader logs which package it uses
    with tempfile.TemporaryDirectory() as folder:
        if args.data_path is None:
            write_large_cuts(Path(folder), args.images)
        own = ["DATA.DATA_PATH", args.data_path or folder, "DATA.BATCH_SIZE", min(_BATCH, args.images)]
        config = get_config(args.cfg, [*own, "MODEL.NUM_CLASSES", 0, *args.opts])
        loaders = {n: build_train_loader(with_values(config, {"DATA.NUM_WORKERS": n})) for n in args.workers}
        epochs = {n: (lambda loader=loader: sum(1 for _ in loader.epoch(0))) for n, loader in loaders.items()}
        seconds = by_turns(epochs, args.rounds, time.perf_counter)
    rates = {n: loaders[n].steps_per_epoch * loaders[n].batch_size / statistics.median(s) for n, s in seconds.items()}
    if args.json:
        return json.dumps({"images_per_sec": rates})
    return "\n".join(f"loader with {n} workers: {rate:,.0f} images/s" for n, rate in rates.items())
