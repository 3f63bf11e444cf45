"""A model as it is against other ways to run it, each in a process of its own, by turns."""

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

from paddlevit.commands.benchmark import ENGINES
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

KINDS = ("base", "compiled", "static", *ENGINES)
TRAINABLE = ("paddle", "base", "compiled", "static")
# What an environment without paddlevit has: stride kernels, the kernels that MKL chooses, and memory that goes back to
# the system at once.
PLAIN = {"FLAGS_use_stride_kernel": "1", "MKL_DEBUG_CPU_TYPE": "0", "PADDLEVIT_KEEP_MEMORY": "0"}
PEAK = "peak"
Times = dict[str, list[float]]


@exit_code
def main(argv: list[str]) -> int:
    """Measure the model that `argv` names and print a table, or JSON; the exit code."""
    args = parse_args(argv)
    from paddlevit.config import get_config
    from paddlevit.flops import count
    from paddlevit.models import build_model

    config = get_config(args.cfg, args.opts)
    spec = {key: getattr(args, key) for key in ("cfg", "opts", "train", "batch_size", "threads")}
    if args.profile:
        shares = measure([args.compare[0]], {**spec, "profile": True}, 1)[args.compare[0]][0]["shares"]
        print(json.dumps(shares) if args.json else "\n".join(f"{key:12} {value:6.1%}" for key, value in shares.items()))
        return 0
    macs = count(build_model(config), config.DATA.IMAGE_SIZE)["macs"] * args.batch_size * (3 if args.train else 1)
    answers = measure([PEAK, *args.compare], spec, args.rounds)
    result = summary({kind: [each["seconds"] for each in found] for kind, found in answers.items()}, spec, macs)
    for kind, row in result["kinds"].items():
        row["memory_mib"] = answers[kind][-1]["memory_mib"]
    result = {"name": config.MODEL.NAME, **spec, "rounds": args.rounds, **result}
    print(json.dumps(result) if args.json else table(result))
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; raises UserError."""
    parser = Parser(prog="python -m benchmarks.models", description=__doc__)
    parser.flag("cfg", required=True, metavar="FILE", help="yaml file, or the name of a shipped variant")
    parser.flag("train", action="store_true", help="a training step, not inference")
    parser.flag("batch_size", type=int, default=8, help="images per step (default 8)")
    parser.flag(
        "compare", nargs="+", default=["paddle"], choices=KINDS, help="the first is what others are set against"
    )
    parser.flag("rounds", type=int, default=15, help="how often each is measured, in turns (default 15)")
    parser.flag("threads", type=int, default=1, help="threads (default 1)")
    parser.flag("profile", action="store_true", help="what the time goes into, in place of how much it is")
    parser.flag("json", action="store_true", help="print one JSON object instead of a table")
    parser.flag("opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any configuration keys")
    args = parser.parse_args(argv)
    if args.train and set(args.compare) - set(TRAINABLE):
        raise UserError(f"-compare must be of {', '.join(TRAINABLE)} with -train, got {' '.join(args.compare)}")
    return args


def measure(kinds: Sequence[str], spec: dict[str, Any], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What the process of each kind answers in each round.

    Each kind has a process of its own, as Paddle's flags are read once; only one of them works at a time.
    """
    workers: dict[str, subprocess.Popen] = {}
    try:
        for kind in dict.fromkeys(kinds):
            workers[kind] = _start({**spec, "kind": kind})
            _answer(workers[kind], kind)  # it is warm
        answers: dict[str, list[dict[str, Any]]] = {kind: [] for kind in workers}
        for _ in range(rounds):
            for kind, worker in workers.items():
                answers[kind].append(_ask(worker, kind))
        return answers
    finally:
        for worker in workers.values():
            worker.communicate()  # ends its input, and with that the process


def _start(spec: dict[str, Any]) -> subprocess.Popen:
    own = {"base": PLAIN, "compiled": {"PADDLEVIT_KERNELS": "1"}}.get(spec["kind"], {})
    env = {**os.environ, "OMP_NUM_THREADS": str(spec["threads"]), **own}
    command = [sys.executable, "-m", "benchmarks.model_worker", json.dumps(spec)]
    root, pipe = Path(__file__).resolve().parents[1], subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _ask(worker: subprocess.Popen, kind: str) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return _answer(worker, kind)


def _answer(worker: subprocess.Popen, kind: str) -> dict[str, Any]:
    assert worker.stdout is not None and worker.stderr is not None
    line = worker.stdout.readline()
    if not line:
        lines = worker.stderr.read().strip().splitlines()
        raise UserError(f"-compare {kind} cannot be measured: {lines[-1] if lines else 'it exited without output'}")
    return json.loads(line)


def summary(times: Times, spec: dict[str, Any], macs: int) -> dict[str, Any]:
    """For each kind medians, spread, and the median over the rounds of its speed against the first kind.

    `macs` are those of a step. The peak is that of matrix products of 1024 x 1024, measured in the same rounds.
    """
    peaks = [1024**3 / seconds for seconds in times[PEAK]]
    kinds = {kind: seconds for kind, seconds in times.items() if kind != PEAK}
    first = next(iter(kinds.values()))
    rows = {}
    for kind, seconds in kinds.items():
        median = statistics.median(seconds)
        rows[kind] = {
            "seconds": median,
            "seconds_min": min(seconds),
            "seconds_max": max(seconds),
            "images_per_sec": spec["batch_size"] / median,
            "macs_per_sec": macs / median,
            "peak_share": statistics.median(macs / s / peak for s, peak in zip(seconds, peaks)),
            "speed": statistics.median(a / b for a, b in zip(first, seconds)),
        }
    return {"macs": macs, "peak_macs_per_sec": statistics.median(peaks), "kinds": rows}


def table(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    what = "training step" if result["train"] else "inference"
    title = (
        f"{result['name']}, {what}, batch {result['batch_size']}, {result['threads']} thread(s); "
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


if __name__ == "__main__":
    sys.exit(main())
