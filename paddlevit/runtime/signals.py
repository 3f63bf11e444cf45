"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any, Callable

# Sent by terminals, ssh and the schedulers of clusters; the processes save and exit with 128 + the number.
_NAMES = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOP_SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))  # Windows has two of them
_SECONDS_TO_REPEAT = 2.0


@contextlib.contextmanager
def stop_signals(ask: Callable[[int], object], end: Callable[[int], object]) -> Iterator[dict[int, Any]]:
    """Meanwhile the first of STOP_SIGNALS calls `ask`, and one more than two seconds later `end`.

    Those in between are repetitions: `timeout`, systemd and Slurm send one to all processes. Left alone are those
    that are ignored, as by nohup. Yields what takes each of them otherwise.
    """
    first: float | None = None

    def handle(signum: int, frame: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            ask(signum)
        elif time.monotonic() - first > _SECONDS_TO_REPEAT:
            end(signum)

    taken = [each for each in STOP_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    previous: dict[int, Any] = {signum: signal.signal(signum, handle) for signum in taken}
    try:
        yield previous
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)
