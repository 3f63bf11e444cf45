"""paddlevit check: what this machine has, and whether every family computes on its device what a CPU does."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError
from paddlevit.runtime.settings import processor
from paddlevit.runtime.streams import only_results

VARIANTS = ("pit_digits", "hvt_digits", "cvt_digits", "hrformer_digits", "regnet_digits")
# AMP's level and type, and the largest error of logits and gradients that is no mistake: a GPU's float32 may be TF32.
PRECISIONS = {
    "f32": ("O0", "float32", 0.01),
    "O1 float16": ("O1", "float16", 0.05),
    "O1 bfloat16": ("O1", "bfloat16", 0.2),
    "O2 float16": ("O2", "float16", 0.1),
}
# Images per second of timm's tables benchmark-{train,infer}-amp-nchw-*-rtx3090.csv.
_PUBLISHED = {"training step": 943, "inference": 4896}
_SPEED_VARIANT = "pit_s_224"


class Row(NamedTuple):
    """A line of the table; `ok` is None where there is nothing to pass."""

    check: str
    result: str
    ok: bool | None = None


@exit_code
def main(argv: list[str]) -> int:
    """Check the machine; the exit code is 2 where something is wrong."""
    parser = Parser(
        description="Check this machine: what it has, and every family on its device against float32 on the CPU.",
        examples=("", "-device gpu -json"),
    )
    parser.flag("device", default="auto", help="auto (default: a GPU where there is one), gpu, cpu, custom:NAME")
    parser.flag("batch_size", type=int, help="images per step of the speed rows (default: 64, on a CPU 4)")
    parser.flag("json", action="store_true", help="print one JSON object per line instead of a table")
    args = parser.parse_args(argv)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"-batch_size must be 1 or more, got {args.batch_size}")
    sound = True
    with only_results() as out:
        if not args.json:
            print("| check | result | |\n|---|---|---|", file=out, flush=True)
        for row in _rows(args):
            sound &= row.ok is not False
            verdict = {True: "ok", False: "FAILED", None: ""}[row.ok]
            line = json.dumps(row._asdict()) if args.json else f"| {row.check} | {row.result} | {verdict} |"
            print(line, file=out, flush=True)
    return 0 if sound else 2


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    yield from _machine()
    import paddle

    from paddlevit.runtime import process

    process.setup(args.device, seed=0)
    device = paddle.device.get_device()
    yield Row("device", device)
    usable = dict(_usable(device))
    yield from (Row(precision, f"n/a: {why}") for precision, why in usable.items() if why)
    for variant in VARIANTS:
        for precision in [name for name, why in usable.items() if not why]:
            yield _computed(variant, precision, device)
    paddle.set_device(device)
    half = not usable["O1 float16"]
    yield _resumed(exact=device == "cpu")
    yield _finite(half)
    gpus = paddle.device.cuda.device_count() if device.startswith("gpu") else 0
    yield _two_processes("gpu") if gpus > 1 else Row("pit_digits, two processes", "n/a: it needs two GPUs")
    yield from _speed(args.batch_size or (4 if device == "cpu" else 64), half)


def _machine() -> Iterator[Row]:
    _, name, features = processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    bf16 = " ".join(flag for flag in ("avx512_bf16", "amx_bf16") if flag in features.split()) or "no bfloat16"
    yield Row("processor", f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {bf16}")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    yield Row("shared memory", f"{free:.1f} GiB free in /dev/shm", free > 0.1)
    import paddle

    cuda = paddle.device.is_compiled_with_cuda()
    built = f"CUDA {paddle.version.cuda()}, cuDNN {paddle.version.cudnn()}" if cuda else "CPUs"
    yield Row("PaddlePaddle", f"{paddle.__version__}, built for {built}")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        yield Row("GPU", "none: there is no nvidia-smi")
        return
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")
    wrong = "" if cuda else "; this PaddlePaddle cannot use it: https://www.paddlepaddle.org.cn/en/install/quick"
    yield Row("GPU", "; ".join(filter(None, found)) + wrong, cuda)


def _usable(device: str) -> Iterator[tuple[str, str]]:
    """The precisions, each with the reason why this device has it not."""
    from paddlevit.runtime import process

    for precision, (level, dtype, _) in PRECISIONS.items():
        try:
            had = level == "O0" or process.half_precision(dtype)
            yield precision, "" if had else "a CPU computes in float32"
        except UserError as error:
            yield precision, str(error)


def _computed(variant: str, precision: str, device: str) -> Row:
    """Logits and gradients on the device, against float32 on the CPU."""
    import numpy as np
    import paddle

    from paddlevit.config import get_config
    from paddlevit.models import build_model

    level, dtype, allowed = PRECISIONS[precision]
    check, config = f"{variant}, {precision}", get_config(variant)
    shape = [4, config.DATA.IMAGE_CHANNELS, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE]
    images = np.random.RandomState(0).randn(*shape).astype("float32")

    def logits_and_gradients(place: str, state: Any = None) -> tuple[np.ndarray, np.ndarray, Any]:
        paddle.set_device(place)
        paddle.seed(0)
        model = build_model(config)
        if state is not None:
            model.set_state_dict(state)
        model.eval()  # without random layers
        logits = _forward(
            model, paddle.to_tensor(images), *((level, dtype) if state is not None else ("O0", "float32"))
        )
        (logits**2).mean().backward()
        grads = [param.grad.astype("float32").numpy().ravel() for param in model.parameters() if param.grad is not None]
        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        return logits.numpy(), np.concatenate(grads), weights

    *expected, weights = logits_and_gradients("cpu")
    try:
        found = logits_and_gradients(device, weights)[:2]
    except Exception as error:  # Paddle has many kinds: MemoryError, OSError, ValueError, ...
        return _failed(check, error)
    errors = [np.linalg.norm(got - want) / np.linalg.norm(want) for got, want in zip(found, expected)]
    result = f"error of logits {errors[0]:.1e}, of gradients {errors[1]:.1e}, allowed {allowed:g}"
    return Row(check, result, bool(max(errors) <= allowed))  # NaN is not


def _forward(model: Any, images: Any, level: str, dtype: str) -> Any:
    """Logits in float32, computed as AMP's `level` says; O0 is float32."""
    import paddle

    half = level != "O0"
    if level == "O2":
        model = paddle.amp.decorate(model, level=level, dtype=dtype)
    with paddle.amp.auto_cast(enable=half, level=level if half else "O1", dtype=dtype if half else "float16"):
        return model(images).astype("float32")


def _failed(check: str, error: Exception) -> Row:
    missing = re.search(r"float16\) of kernel `(\w+)` is not registered", str(error))
    what = f"there is no float16 kernel of {missing[1]}" if missing else str(error).strip().splitlines()[-1][:120]
    return Row(check, f"does not run: {what}", False)


def _trainer(*opts: Any) -> Any:
    from paddlevit.config import get_config
    from paddlevit.run.build import build_trainer

    own = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "DATA.BATCH_SIZE", 8, "TRAIN.MODEL_EMA", False]
    return build_trainer(get_config("pit_digits", [*own, *opts]), steps_per_epoch=100)


def _train(trainer: Any, steps: int) -> list:
    """The losses of `steps` steps on made-up images, which depend on the number of the step only."""
    import numpy as np
    import paddle

    losses = []
    trainer.model.train()
    for _ in range(steps):
        rng = np.random.RandomState(trainer.step)
        images = paddle.to_tensor(rng.randn(8, 3, 32, 32).astype("float32"))
        losses.append(trainer.train_step(images, paddle.to_tensor(rng.randint(0, 10, 8))))
    return losses


def _resumed(*, exact: bool) -> Row:
    import numpy as np

    try:
        undisturbed, first, second = _trainer(), _trainer(), _trainer()
        _train(undisturbed, 10)
        _train(first, 5)
        state = first.state()
        second.model.set_state_dict({name: value.numpy() for name, value in state["model"].items()})
        second.load_state({name: np.asarray(value) for name, value in state["optimizer"].items()}, state["progress"])
        _train(second, 5)
    except Exception as error:
        return _failed("pit_digits, resumed", error)
    pairs = zip(undisturbed.model.parameters(), second.model.parameters())
    largest = max(np.abs(one.numpy() - other.numpy()).max() for one, other in pairs)
    result = f"largest difference of weights after 10 steps, resumed after 5: {largest:.1e}"
    return Row("pit_digits, resumed", result, bool(largest <= (0.0 if exact else 1e-3)))


def _finite(half: bool) -> Row:
    import numpy as np

    try:
        trainer = _trainer("AMP", half)
        losses = np.array([loss.item() for loss in _train(trainer, 100)])
        skipped = trainer.read_skipped()
    except Exception as error:  # Paddle has many kinds: MemoryError, OSError, ValueError, ...
        return _failed("pit_digits, 100 steps", error)
    finite = bool(np.isfinite(losses).all())
    steps = f"{'O1 float16' if half else 'f32'}, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    return Row("pit_digits, 100 steps", f"{steps}, {skipped} skipped as they were not finite", finite)


def _two_processes(device: str) -> Row:
    """Weights that an epoch leaves by two processes, against those by one with batches twice as large."""
    import numpy as np

    from paddlevit.data.prepare import write_large_cuts
    from paddlevit.weights import read_state_dict

    check, weights = "pit_digits, two processes", []
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_large_cuts(Path(folder), 32)
        except UserError as error:
            return Row(check, f"n/a: {error}")
        for processes in (1, 2):
            output = Path(folder) / f"by_{processes}"
            words = ["-cfg", "pit_digits", "-data_path", folder, "-output", output, "-device", device, "-epochs", 1]
            words += ["-nprocs", processes, "-batch_size", 16 // processes, "-num_workers", 1]
            command = [sys.executable, "-m", "paddlevit", "train", *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return _failed(check, RuntimeError(f"by {processes}: {done.stderr.strip() or done.returncode}"))
            state = read_state_dict(output / "epoch_001.pdparams")
            weights.append(np.concatenate([state[name].ravel() for name in sorted(state)]))
    apart = np.linalg.norm(weights[1] - weights[0]) / np.linalg.norm(weights[0])
    return Row(check, f"error of weights {apart:.1e} to one process, allowed 0.001", bool(apart <= 1e-3))


def _speed(batch_size: int, amp: bool) -> Iterator[Row]:
    import paddle

    from paddlevit.commands import benchmark
    from paddlevit.config import get_config
    from paddlevit.models import build_model
    from paddlevit.runtime import process

    config = get_config(_SPEED_VARIANT)
    images = paddle.randn([batch_size, 3, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE])
    steps = {
        "inference": lambda: benchmark.inference_step("paddle", build_model(config), images, amp=amp),
        "training step": lambda: benchmark.training_step(build_model(config), images, 1000, amp=amp),
    }
    rates = {}
    for what, make in steps.items():
        try:
            seconds = benchmark.by_turns({what: make()}, 3, _synchronized)[what]
        except Exception as error:  # Paddle has many kinds: MemoryError, OSError, ValueError, ...
            yield _failed(f"{_SPEED_VARIANT}, {what}", error)
            continue
        rates[what] = batch_size / statistics.median(seconds)
        kind = f"{'O1 float16' if amp else 'f32'}, batch {batch_size}, {process.peak_memory():,} MiB at most"
        published = f"timm publishes {_PUBLISHED[what]:,} on an RTX 3090 with AMP"
        yield Row(f"{_SPEED_VARIANT}, {what}", f"{rates[what]:,.1f} images/s ({kind}; {published})")
    yield _data_path(rates.get("training step"))


def _data_path(needed: float | None) -> Row:
    from paddlevit.config import get_config
    from paddlevit.data import build_train_loader
    from paddlevit.data.prepare import write_large_cuts

    workers, batch_size = min(len(os.sched_getaffinity(0)), 8), 16
    batches = 4 * workers
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_large_cuts(Path(folder), batch_size * batches)
        except UserError as error:
            return Row("data path", f"n/a: {error}")
        own = ["DATA.DATA_PATH", folder, "DATA.NUM_WORKERS", workers, "DATA.BATCH_SIZE", batch_size]
        loader = build_train_loader(get_config(_SPEED_VARIANT, [*own, "MODEL.NUM_CLASSES", 2]))
        for epoch in range(2):  # the first one starts the workers
            start = time.perf_counter()
            images = sum(len(labels) for _, labels in loader.epoch(epoch))
    rate = images / (time.perf_counter() - start)
    limit = f"; a training step takes {needed:,.0f}" if needed else ""
    return Row("data path", f"{rate:,.0f} JPEG images/s by {workers} workers{limit}")


def _synchronized() -> float:
    import paddle

    if paddle.device.get_device() != "cpu":
        paddle.device.synchronize()
    return time.perf_counter()
