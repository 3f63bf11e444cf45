"""Whether every family computes on a device what a CPU does, and how fast it is there."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import paddle

from paddlevit.commands.benchmark import by_turns, inference_step, synchronized, training_step
from paddlevit.config import get_config, variant_names
from paddlevit.data import build_train_loader
from paddlevit.data.prepare import write_large_cuts
from paddlevit.errors import UserError
from paddlevit.layers import runs_flash_attention
from paddlevit.models import build_model
from paddlevit.run.build import build_trainer
from paddlevit.runtime import kernels, process
from paddlevit.runtime.settings import processor
from paddlevit.weights import read_state_dict

VARIANTS = "*_digits"
_PLAIN = "O1 float16, plain attention"  # in place of the fused one
# AMP's level and type, and the largest error of logits and gradients that is allowed: a GPU's float32 may be TF32.
PRECISIONS = {
    "f32": ("O0", "float16", 0.01),
    "O1 float16": ("O1", "float16", 0.05),
    _PLAIN: ("O1", "float16", 0.05),
    "O1 bfloat16": ("O1", "bfloat16", 0.2),
    "O2 float16": ("O2", "float16", 0.1),
}
# Images per second of timm's tables benchmark-{train,infer}-amp-nchw-*-rtx3090.csv.
_PUBLISHED = {"inference": 4896, "training step": 943}
_STEPS = 100
_SPEED_VARIANT = "pit_s_224"

Result = tuple[str, Optional[bool]]  # what was found, and whether it is as it should be; None: nothing to pass


class Row(NamedTuple):
    """A line of the table; `ok` is None where there is nothing to pass."""

    check: str
    result: str
    ok: bool | None = None


def rows(name: str, batch_size: int | None) -> Iterator[Row]:
    """What is found on this machine, and on its device `name`."""
    yield from _machine()
    process.setup(name, seed=0)
    device = paddle.device.get_device()
    yield Row("device", device)
    usable = dict(_usable(device))
    yield from (Row(precision, f"n/a: {why}") for precision, why in usable.items() if why)
    for variant in variant_names(VARIANTS):
        for precision in [name for name, why in usable.items() if not why]:
            yield _tried(f"{variant}, {precision}", _computed, variant, precision, device)
    paddle.set_device(device)
    half = not usable["O1 float16"]
    yield _tried("pit_digits, resumed", _resumed, device == "cpu")
    yield _tried(f"pit_digits, {_STEPS} steps", _finite, half)
    yield _tried("pit_digits, attention logits", _attention_logits, half)
    kind = device.split(":")[0]
    devices = sum(each.startswith(f"{kind}:") for each in paddle.device.get_available_device())
    images = "" if importlib.util.find_spec("sklearn") else "it needs scikit-learn: pip install '.[demo]' in the clone"
    missing, named = images if devices > 1 else "it needs two devices", kind if kind == "gpu" else f"custom:{kind}"
    yield _tried("pit_digits, two processes", _two_processes, named, missing=missing)
    for what in _PUBLISHED:
        yield _tried(f"{_SPEED_VARIANT}, {what}", _speed, what, batch_size or (4 if device == "cpu" else 64), half)
    yield _tried("data path, to compare with a training step", _data_path, missing=images)


def _tried(check: str, measure: Callable[..., Result], *args: Any, missing: str = "") -> Row:
    """What `measure` finds, or what it fails of, or what is `missing` here."""
    if missing:
        return Row(check, f"n/a: {missing}")
    try:
        return Row(check, *measure(*args))
    except Exception as error:  # Paddle has many kinds: MemoryError, OSError, ValueError, ...
        kernel = re.search(r"float16\) of kernel `(\w+)` is not registered", str(error))
        what = f"there is no float16 kernel of {kernel[1]}" if kernel else str(error).strip().splitlines()[-1][:120]
        return Row(check, f"does not run: {what}", False)


def _machine() -> Iterator[Row]:
    _, name, features = processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    bf16 = " ".join(flag for flag in ("avx512_bf16", "amx_bf16") if flag in features.split()) or "no bfloat16"
    yield Row("processor", f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {bf16}")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    yield Row("shared memory", f"{free:.1f} GiB free in /dev/shm", free > 0.1)
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
    for precision, (level, dtype, _) in PRECISIONS.items():
        try:
            why = "" if level == "O0" or process.half_precision(dtype) else "a CPU computes in float32"
            if precision == _PLAIN and not runs_flash_attention(device):
                why = why or "the device has no other"
            yield precision, why
        except UserError as error:
            yield precision, str(error)


def _computed(variant: str, precision: str, device: str) -> Result:
    """Logits and gradients on the device, against float32 on the CPU."""
    level, dtype, allowed = PRECISIONS[precision]
    config = get_config(variant)
    side = config.DATA.IMAGE_SIZE
    images = np.random.RandomState(0).randn(4, config.DATA.IMAGE_CHANNELS, side, side).astype("float32")
    weights = {name: value.numpy() for name, value in build_model(config).state_dict().items()}

    def logits_and_gradients(place: str, level: str) -> tuple[np.ndarray, np.ndarray]:
        paddle.set_device(place)
        model = build_model(config)
        model.set_state_dict(weights)
        model.eval()  # without random layers
        for layer in model.sublayers():
            if precision == _PLAIN and isinstance(layer, paddle.nn.Dropout):
                layer.register_forward_post_hook(lambda *_: None)  # which the fused kernel would leave out
        if level == "O2":
            model = paddle.amp.decorate(model, level=level, dtype=dtype)
        with paddle.amp.auto_cast(enable=level != "O0", level=level, dtype=dtype):
            logits = model(paddle.to_tensor(images)).astype("float32")
        (logits**2).mean().backward()
        grads = [param.grad.astype("float32").numpy().ravel() for param in model.parameters() if param.grad is not None]
        return logits.numpy(), np.concatenate(grads)

    expected, found = logits_and_gradients("cpu", "O0"), logits_and_gradients(device, level)
    errors = [np.linalg.norm(got - want) / np.linalg.norm(want) for got, want in zip(found, expected)]
    result = f"error of logits {errors[0]:.1e}, of gradients {errors[1]:.1e}, allowed {allowed:g}"
    return result, bool(max(errors) <= allowed)  # NaN is not


def _trainer(*opts: Any) -> Any:
    own = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "DATA.BATCH_SIZE", 8, "TRAIN.MODEL_EMA", False]
    return build_trainer(get_config("pit_digits", [*own, *opts]), steps_per_epoch=100)


def _train(trainer: Any, steps: int) -> list:
    """The losses of `steps` steps on made-up images, which depend on the number of the step only."""
    losses = []
    trainer.model.train()
    for _ in range(steps):
        rng = np.random.RandomState(trainer.step)
        images = paddle.to_tensor(rng.randn(8, 3, 32, 32).astype("float32"))
        losses.append(trainer.train_step(images, paddle.to_tensor(rng.randint(0, 10, 8))))
    return losses


def _resumed(exact: bool) -> Result:
    undisturbed, first, second = _trainer(), _trainer(), _trainer()
    _train(undisturbed, 10)
    _train(first, 5)
    state = first.state()
    second.model.set_state_dict({name: value.numpy() for name, value in state["model"].items()})
    second.load_state({name: np.asarray(value) for name, value in state["optimizer"].items()}, state["progress"])
    _train(second, 5)
    pairs = zip(undisturbed.model.parameters(), second.model.parameters())
    largest = max(np.abs(one.numpy() - other.numpy()).max() for one, other in pairs)
    result = f"largest difference of weights after 10 steps, resumed after 5: {largest:.1e}"
    return result, bool(largest <= (0.0 if exact else 1e-3))


@functools.cache
def _trained(half: bool) -> tuple[Any, np.ndarray]:
    """A trainer after _STEPS steps, and their losses."""
    trainer = _trainer("AMP", half)
    return trainer, np.array([loss.item() for loss in _train(trainer, _STEPS)])


def _finite(half: bool) -> Result:
    """Whether losses stay finite."""
    trainer, losses = _trained(half)
    steps = f"{_kind(half)}, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    skipped = f"{trainer.read_skipped()} skipped as they were not finite"
    return f"{steps}, {skipped}", bool(np.isfinite(losses).all())


def _attention_logits(half: bool) -> Result:
    """The largest attention logit after the steps."""
    trainer, _ = _trained(half)
    for layer in trainer.model.sublayers():  # fused attention, which has no softmax, is not used where hooks watch
        layer.register_forward_post_hook(lambda *_: None)
    softmax = paddle.nn.functional.softmax
    watched = unittest.mock.patch.object(paddle.nn.functional, "softmax", wraps=softmax)
    with paddle.no_grad(), trainer.autocast(), kernels.left_alone(), watched as seen:
        trainer.model(paddle.randn([8, 3, 32, 32]))
    largest = np.max([call.args[0].astype("float32").abs().max().item() for call in seen.call_args_list])
    result = f"largest q k / sqrt(d) {largest:.2f} in {_kind(half)}; float16 holds up to 65,504"
    return result, bool(largest <= 65504)


def _kind(half: bool) -> str:
    return "O1 float16" if half else "f32"


def _two_processes(device: str) -> Result:
    """Weights that an epoch leaves by two processes, against those by one with batches twice as large."""
    weights = []
    with tempfile.TemporaryDirectory() as folder:
        write_large_cuts(Path(folder), 32)
        for processes in (1, 2):
            output = Path(folder) / f"by_{processes}"
            words = ["-cfg", "pit_digits", "-data_path", folder, "-output", output, "-device", device, "-epochs", 1]
            words += ["-nprocs", processes, "-batch_size", 16 // processes, "-num_workers", 1]
            command = [sys.executable, "-m", "paddlevit", "train", *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"by {processes}: {done.stderr.strip() or done.returncode}")
            state = read_state_dict(output / "epoch_001.pdparams")
            weights.append(np.concatenate([state[name].ravel() for name in sorted(state)]))
    apart = np.linalg.norm(weights[1] - weights[0]) / np.linalg.norm(weights[0])
    return f"error of weights {apart:.1e} to one process, allowed 0.001", bool(apart <= 1e-3)


def _speed(what: str, batch_size: int, amp: bool) -> Result:
    config = get_config(_SPEED_VARIANT)
    model, images = build_model(config), paddle.randn([batch_size, 3, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE])
    if what == "inference":
        step = inference_step("paddle", model, images, amp=amp)
    else:
        step = training_step(model, images, config.MODEL.NUM_CLASSES, amp=amp)
    rate = batch_size / statistics.median(by_turns({what: step}, 3, synchronized)[what])
    kind = f"{_kind(amp)}, batch {batch_size}, {process.peak_memory():,} MiB at most"
    published = f"timm publishes {_PUBLISHED[what]:,} on an RTX 3090 with AMP"
    return f"{rate:,.1f} images/s ({kind}; {published})", None


def _data_path() -> Result:
    workers, batch_size = min(len(os.sched_getaffinity(0)), 8), 16
    with tempfile.TemporaryDirectory() as folder:
        write_large_cuts(Path(folder), 4 * workers * batch_size)
        own = ["DATA.DATA_PATH", folder, "DATA.NUM_WORKERS", workers, "DATA.BATCH_SIZE", batch_size]
        loader = build_train_loader(get_config(_SPEED_VARIANT, [*own, "MODEL.NUM_CLASSES", 2]))
        for epoch in range(2):  # the first one starts the workers
            start = time.perf_counter()
            images = sum(len(labels) for _, labels in loader.epoch(epoch))
    return f"{images / (time.perf_counter() - start):,.0f} JPEG images/s by {workers} workers", None
