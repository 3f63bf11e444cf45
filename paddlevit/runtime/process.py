"""This process among those that train together: rank, collectives, device, seeds, loggers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import sys
import warnings
from pathlib import Path

import paddle
import paddle.distributed as dist
from paddle import Tensor
from tqdm import tqdm

from paddlevit import paddle_internals
from paddlevit.errors import UserError
from paddlevit.runtime.streams import Formatter

logger = logging.getLogger(__name__)

_CAPABILITY = {"float16": (7, 0), "bfloat16": (8, 0)}  # what a GPU needs to compute in them


def rank() -> int:
    """Number of this process among those that train together; 0 if it is alone."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def is_main() -> bool:
    """Whether this process writes the checkpoints and the log that people read."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, which all call this; it is written into `tensor` too."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(value: int) -> int:
    """The largest `value` of all processes; waits for the device and for the others."""
    if world_size() == 1:
        return value
    tensor = paddle.to_tensor([value])
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()


def agree(value: str) -> bool:
    """Whether all processes, which all call this, have the same `value`."""
    number = int(hashlib.sha256(value.encode()).hexdigest()[:15], 16)
    return all_reduce_max(number) == -all_reduce_max(-number)


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def choose_device(name: str) -> str:
    """What Paddle calls the device that a user names auto, gpu, cpu or custom:NAME: 'gpu', 'cpu' or NAME.

    Raises UserError where there is no such device.
    """
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if name.startswith("custom:"):  # another maker's plug-in
        custom = paddle.device.get_all_custom_device_type()
        if name[7:] not in custom:
            found = ", ".join(f"custom:{each}" for each in custom) or "none (CUSTOM_DEVICE_ROOT names their folder)"
            raise UserError(f"-device {name}: there is no such plug-in; found: {found}")
        return name[7:]
    if name not in ("auto", "gpu", "cpu"):
        raise UserError(f"-device must be auto, gpu, cpu or custom:NAME, got {name!r}")
    if name == "gpu" and gpus == 0:
        why = "this PaddlePaddle is built for CPU" if not paddle.device.is_compiled_with_cuda() else "no GPU is visible"
        raise UserError(f"-device gpu: {why}; use -device cpu, or install paddlepaddle-gpu and check nvidia-smi")
    return "gpu" if gpus and name != "cpu" else "cpu"


def half_precision(dtype: str) -> bool:
    """Whether this device computes in `dtype`, 'float16' or 'bfloat16'; a CPU does not.

    Raises UserError for a device that has no such arithmetic: Paddle would compute in float32 there.
    """
    device = paddle.device.get_device()
    if device.startswith("gpu") and not paddle.is_compiled_with_rocm():
        capability = paddle.device.cuda.get_device_capability()
        if capability < _CAPABILITY[dtype]:
            usable = next((f"-amp_dtype {other}" for other, least in _CAPABILITY.items() if capability >= least), "")
            have, need = (".".join(map(str, pair)) for pair in (capability, _CAPABILITY[dtype]))
            raise UserError(
                f"-amp_dtype {dtype}: it needs a GPU of compute capability {need}, this one has {have}; "
                f"{'use ' + usable if usable else 'train without -amp'}"
            )
    elif dtype == "bfloat16" and device != "cpu" and not device.startswith("gpu"):
        raise UserError(f"-amp_dtype bfloat16: Paddle has it on GPUs only, not on {device}; use -amp_dtype float16")
    return device != "cpu"


def check_amp(dtype: str) -> None:
    """Warn that -amp does nothing on a CPU. Raises UserError as `half_precision` does."""
    if not half_precision(dtype):
        logger.warning("-amp does nothing on a CPU: computing in float32")


def process_count(asked: int | None, kind: str) -> int:
    """How many processes to start on 'gpu' or another device (None: one per visible GPU, 1 on any other); UserError for
    too many."""
    if kind != "gpu":
        return asked or 1
    gpus = paddle.device.cuda.device_count()
    if asked is not None and asked > gpus:
        raise UserError(f"-nprocs {asked}: only {gpus} GPUs are visible")
    return asked or gpus


def peak_memory() -> int:
    """Peak memory of this process in MiB: of the GPU, or on a CPU of the process."""
    if paddle.device.get_device().startswith("gpu"):
        return round(paddle.device.cuda.max_memory_allocated() / 2**20)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


def setup(device: str, seed: int) -> None:
    """Choose the device, join the other processes, and seed Paddle: all start from the same weights.

    Raises UserError where a GPU is asked for and there is none, and where this Paddle lacks what the package needs.
    """
    paddle_internals.check()
    # A harmless warning of every BatchNorm in training.
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    chosen = choose_device(device)
    # ParallelEnv's local_rank is the rank among all machines.
    paddle.set_device("cpu" if chosen == "cpu" else f"{chosen}:{dist.ParallelEnv().device_id}")
    if world_size() > 1:
        if chosen != "gpu":  # for which Paddle finds it
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo" if chosen == "cpu" else "xccl"
        with contextlib.redirect_stderr(io.StringIO()):  # it lists the flags that Paddle has set itself
            dist.init_parallel_env()
    paddle.seed(seed)


def setup_logging(folder: Path | None = None) -> None:
    """Log the package's messages to the terminal (rank 0) and to `folder`/log.txt (other ranks: log_rank<N>.txt).

    The package's logger does not propagate: importing paddle adds a handler to the root logger.
    """
    package = logging.getLogger("paddlevit")
    package.setLevel(logging.INFO)
    package.propagate = False
    for handler in [each for each in package.handlers if isinstance(each.formatter, Formatter)]:  # ours
        package.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_TerminalHandler()] if is_main() else []
    if folder is not None:
        name = "log.txt" if is_main() else f"log_rank{rank()}.txt"
        handlers.append(_FileHandler(folder / name, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        package.addHandler(handler)


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Where the disk is full, the line stays in the buffer, and is written with the next one that can be."""


class _TerminalHandler(logging.Handler):
    """Writes above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone, a pipe that nobody reads, a full disk
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
