"""What this process is: its device, rank and seeds, its loggers, and how processes are started."""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor
from tqdm import tqdm

from paddlevit.errors import UserError

logger = logging.getLogger(__name__)


def rank() -> int:
    """Number of this process among those that train together; 0 alone."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def is_main() -> bool:
    """Whether this process writes the checkpoints and the log that people read."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes."""
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


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def choose_device(name: str) -> str:
    """'gpu' or 'cpu' for auto, gpu or cpu; UserError where a GPU is asked for and there is none."""
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if name == "gpu" and gpus == 0:
        why = "this PaddlePaddle is built for CPU" if not paddle.device.is_compiled_with_cuda() else "no GPU is visible"
        raise UserError(f"-device gpu: {why}; use -device cpu, or install paddlepaddle-gpu and check nvidia-smi")
    return "gpu" if gpus and name != "cpu" else "cpu"


def setup(device: str, seed: int) -> None:
    """Choose the device, join the other processes and seed every generator, each rank on its own."""
    if choose_device(device) == "gpu":
        paddle.set_device(f"gpu:{dist.ParallelEnv().device_id}")
    else:
        paddle.set_device("cpu")
    if world_size() > 1:
        dist.init_parallel_env()
    random.seed(seed + rank())
    np.random.seed((seed + rank()) % 2**32)
    paddle.seed(seed)


def setup_logging(folder: Optional[Path] = None) -> None:
    """Log the package's messages to the terminal (rank 0) and to `folder`/log.txt (log_rank<N>.txt elsewhere).

    The package's logger stands alone: importing paddle puts a handler of its own on the root logger.
    """
    package = logging.getLogger("paddlevit")
    package.setLevel(logging.INFO)
    package.propagate = False
    for handler in list(package.handlers):
        package.removeHandler(handler)
        handler.close()
    handlers: List[logging.Handler] = [_TerminalHandler()] if is_main() else []
    if folder is not None:
        name = "log.txt" if is_main() else f"log_rank{rank()}.txt"
        handlers.append(logging.FileHandler(folder / name, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        package.addHandler(handler)


class _TerminalHandler(logging.Handler):
    """Writes above a progress bar, if there is one, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "every_step", False) and sys.stderr.isatty() and sys.stdout.isatty():
            return  # the progress bar shows it
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def launch(function: Callable[[], int], argv: Sequence[str], *, nprocs: Optional[int], device: str) -> int:
    """Run `function` on `nprocs` processes (None: one per visible GPU, 1 on CPU) and return the exit code.

    Alone, or where a launcher has started this process, it runs in place. Otherwise this program is started once per
    process with the arguments `argv`; when one of them fails the others are stopped and its exit code is returned.
    """
    kind = choose_device(device)
    if nprocs is None:
        nprocs = paddle.device.cuda.device_count() if kind == "gpu" else 1
    if nprocs == 1 or launched():
        return function()
    if kind == "gpu" and nprocs > paddle.device.cuda.device_count():
        raise UserError(f"-nprocs {nprocs}: only {paddle.device.cuda.device_count()} GPUs are visible")
    command = [sys.executable, sys.argv[0], *argv]
    # A session of their own: Ctrl-C reaches this process, which passes it on, and none of them twice.
    return _wait(
        [
            subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True)
            for env in _environments(nprocs, kind)
        ]
    )


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "PADDLE_TRAINER_ID" in os.environ


def _environments(nprocs: int, kind: str) -> List[dict]:
    endpoints = [f"127.0.0.1:{port}" for port in _free_ports(nprocs)]
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(nprocs)))).split(",")
    return [
        {
            "PADDLE_TRAINER_ID": str(i),
            "PADDLE_TRAINERS_NUM": str(nprocs),
            "PADDLE_CURRENT_ENDPOINT": endpoints[i],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            **(
                {"FLAGS_selected_gpus": devices[i], "PADDLE_DISTRI_BACKEND": "nccl"}
                if kind == "gpu"
                else {"PADDLE_DISTRI_BACKEND": "gloo"}
            ),
        }
        for i in range(nprocs)
    ]


def _free_ports(count: int) -> List[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait(processes: List[subprocess.Popen]) -> int:
    """The exit code of the first process that fails, after stopping the others; 0 when all end well.

    SIGTERM and SIGINT are passed on, so that the processes save and end by themselves.
    """
    asked: List[int] = []

    def pass_on(signum: int, frame: Any) -> None:
        asked.append(signum)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    previous = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = [code for code in codes if code]
            if all(code is not None for code in codes) or (failed and not asked):
                return _exit_code(failed)
            time.sleep(0.1)
    finally:
        _stop(processes)
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _exit_code(failed: List[int]) -> int:
    """That of the first failure, as a shell gives it; 0 without one."""
    return 0 if not failed else failed[0] if failed[0] > 0 else 128 - failed[0]


def _stop(processes: List[subprocess.Popen], grace: float = 15.0) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
