"""tools/benchmark.py model: seconds, images/s and MACs/s of a network, alone or against other ways to run it."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlevit.commands.parser import Parser
from paddlevit.errors import UserError

KINDS = ("paddle", "base", "static", "program", "onnx", "openvino")
TRAINABLE = ("paddle", "base", "static")
# What an environment without this package has: stride kernels, the kernels that MKL chooses, and memory that goes back
# to the system at once.
PLAIN = {"FLAGS_use_stride_kernel": "1", "MKL_DEBUG_CPU_TYPE": "0", "PADDLEVIT_KEEP_MEMORY": "0"}
PEAK = "peak"
Times = dict[str, list[float]]


def model_command(argv: list[str]) -> int:
    """Measure the network that `argv` names and print a table, or JSON; the exit code."""
    args = _parse_args(argv)
    from paddlevit.config import get_config
    from paddlevit.flops import count
    from paddlevit.models import build_model
    from paddlevit.runtime.process import choose_device

    config = get_config(args.cfg, args.opts)
    if args.profile:
        shares = _profile({**_spec(args), "kind": args.compare[0]})
        print(json.dumps(shares) if args.json else "\n".join(f"{key:12} {value:6.1%}" for key, value in shares.items()))
        return 0
    choose_device(args.device)
    macs = count(build_model(config), config.DATA.IMAGE_SIZE)["macs"] * args.batch_size * (3 if args.train else 1)
    spec = _spec(args)
    times, memory = measure([PEAK, *args.compare], spec, args.rounds)
    result = summary(times, args.batch_size, macs)
    for kind, row in result["kinds"].items():
        row["memory_mib"] = memory[kind]
    result = {"name": config.MODEL.NAME, **spec, "rounds": args.rounds, **result}
    print(json.dumps(result) if args.json else table(result))
    return 0


def _parse_args(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="benchmark.py model", description="Measure the speed of a network.")
    parser.flag("cfg", required=True, metavar="FILE", help="yaml file, or the name of a shipped variant")
    parser.flag("train", action="store_true", help="a training step (forward, loss, backward, AdamW), not inference")
    parser.flag("batch_size", type=int, default=8, help="images per step (default 8)")
    parser.flag("compare", nargs="+", default=["paddle"], metavar="KIND", help=", ".join(KINDS))
    parser.flag("rounds", type=int, default=15, help="how often each is measured, in turns (default 15)")
    parser.flag("threads", type=int, default=1, help="threads of a CPU (default 1)")
    parser.flag("device", default="cpu", help="cpu (default) or gpu")
    parser.flag("amp", action="store_true", help="mixed precision, on a GPU")
    parser.flag("profile", action="store_true", help="what the time goes into, on a CPU, in place of how much it is")
    parser.flag("json", action="store_true", help="print one JSON object instead of a table")
    parser.flag(
        "opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any keys of the configuration"
    )
    args = parser.parse_args(argv)
    _check(args.compare, args.train)
    if min(args.rounds, args.batch_size, args.threads) < 1:
        raise UserError("-rounds, -batch_size and -threads are 1 or more")
    if args.device not in ("cpu", "gpu"):
        raise UserError(f"-device {args.device}, allowed: cpu, gpu")
    if args.profile and args.device != "cpu":
        raise UserError(f"-profile -device {args.device}: allowed: cpu")
    return args


def _spec(args: argparse.Namespace) -> dict[str, Any]:
    """What the processes of the benchmark have to know."""
    return {key: getattr(args, key) for key in ("cfg", "opts", "train", "batch_size", "threads", "device", "amp")}


def _profile(spec: dict[str, Any]) -> dict[str, float]:
    """Shares of a step's time by what is done in it."""
    process = _start(spec, "benchmark_profile")
    try:
        return _answer(process, spec["kind"])
    finally:
        process.communicate()


def _check(kinds: Sequence[str], train: bool) -> None:
    allowed = TRAINABLE if train else KINDS
    for kind in kinds:
        if kind not in allowed:
            raise UserError(f"-compare {kind}: allowed{' with -train' if train else ''}: {', '.join(allowed)}")


def measure(kinds: Sequence[str], spec: dict[str, Any], rounds: int) -> Any:
    """Seconds per step of each kind, one entry per round, and peak memory in MiB.

    Each kind has a process of its own, as Paddle's flags are read once; only one of them works at a time.
    """
    kinds = list(dict.fromkeys(kinds))
    workers = {}
    try:
        for kind in kinds:
            workers[kind] = _start({**spec, "kind": kind})
            _answer(workers[kind], kind)  # it is warm
        times: Times = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, worker in workers.items():
                times[kind].append(_ask(worker, kind)["seconds"])
        return times, {kind: _ask(worker, kind)["memory_mib"] for kind, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.communicate()  # ends its input, and with that the process


def _start(spec: dict[str, Any], module: str = "benchmark_worker") -> subprocess.Popen:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(spec["threads"])}
    if spec["kind"] == "base":
        env.update(PLAIN)
    command = [sys.executable, "-m", f"paddlevit.commands.{module}", json.dumps(spec)]
    return subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _ask(worker: subprocess.Popen, kind: str) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return _answer(worker, kind)


def _answer(worker: subprocess.Popen, kind: str) -> dict[str, Any]:
    assert worker.stdout is not None and worker.stderr is not None
    line = worker.stdout.readline()
    if not line:
        said = worker.stderr.read().strip().splitlines()
        raise UserError(f"-compare {kind} cannot be measured: {said[-1] if said else 'it ended without a word'}")
    return json.loads(line)


def summary(times: Times, batch_size: int, macs: int) -> dict[str, Any]:
    """For each kind medians, spread, and the median over the rounds of its speed against the first kind.

    `macs` are those of a step. The peak is that of matrix products of 1024 x 1024, measured in the same rounds.
    """
    peaks = [1024**3 / seconds for seconds in times[PEAK]]
    kinds = {kind: seconds for kind, seconds in times.items() if kind != PEAK}
    first = next(iter(kinds.values()))
    rows = {}
    for kind, seconds in kinds.items():
        median = statistics.median(seconds)
        low, high = min(seconds), max(seconds)
        rows[kind] = {
            "seconds": median,
            "seconds_min": low,
            "seconds_max": high,
            "images_per_sec": batch_size / median,
            "macs_per_sec": macs / median,
            "peak_share": statistics.median(macs / s / peak for s, peak in zip(seconds, peaks)),
            "speed": statistics.median(a / b for a, b in zip(first, seconds)),
        }
    return {"macs": macs, "peak_macs_per_sec": statistics.median(peaks), "kinds": rows}


def table(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    what = "training step" if result["train"] else "inference"
    title = (
        f"{result['name']}, {what}, batch {result['batch_size']}, {result['device']}, {result['threads']} thread(s); "
        f"{result['macs'] / 1e9:.2f} GMACs a step; matmul peak {result['peak_macs_per_sec'] / 1e9:.1f} GMACs/s"
    )
    head = "            s/step        min - max  images/s  GMACs/s  of peak  speed    MiB"
    lines = [
        f"{kind:9} {row['seconds']:8.4f} {row['seconds_min']:8.4f}-{row['seconds_max']:.4f} "
        f"{row['images_per_sec']:9.1f} {row['macs_per_sec'] / 1e9:8.1f} {row['peak_share']:8.1%} "
        f"{row['speed']:5.2f}x {row['memory_mib']:6.0f}"
        for kind, row in result["kinds"].items()
    ]
    return "\n".join([title, head, *lines])
