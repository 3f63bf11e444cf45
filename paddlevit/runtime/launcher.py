"""Starts the processes of a job, supervises them, ends them together and restarts them.

Each process shares an unnamed file with the launcher: the time of its last progress, then, if it has failed, a line of
JSON that says why. A failed process keeps its connections open and waits to be killed, so that the others do not fail
because of it and hide the first error.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple

from paddlevit.errors import UserError

logger = logging.getLogger(__name__)

SECONDS_TO_REPEAT = 2.0  # repeated within, a signal counts as one: `timeout`, systemd and Slurm send it to all
# Sent by terminals, ssh and the schedulers of clusters; the processes save and exit with 128 + the number.
_NAMES = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOP_SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))  # Windows has two of them
_LAUNCHER = "PADDLEVIT_LAUNCHER"  # in the environment of a process: its launcher's id, and the file they share
_BEAT = struct.Struct("d")
_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_BETWEEN_ALARMS = 1.0
_SECONDS_TO_START = 600.0  # added to the hang timeout before the first step
_SECONDS_TO_DIE = 0.5  # peers see a broken connection before the process that broke it can be reaped
_SECONDS_TO_STOP = 10.0  # for the others, after the first process has stopped on request
_SECONDS_TO_OBEY = 2.0  # after a second signal
_SECONDS_TO_BE_ENDED = 60.0  # that a failed process waits for its launcher
_SECONDS_OF_GLOO = 25.0  # gloo waits 30 for a silent peer, then aborts the process that waits
_ABORTED = 128 + signal.SIGABRT
_MOST_TEXT = 100_000  # characters of a traceback
_PR_SET_PDEATHSIG = 1
_STUCK = {"T": "is stopped", "D": "waits for a disk"}
_STOPPED = {code for signum in STOP_SIGNALS for code in (128 + signum, -signum)}

_Signal = tuple[int, float]  # and when it came

_shared: int | None = None
_own_timeout = 0.0
_alarm_set = 0.0


@dataclass(frozen=True)
class Job:
    """Processes that train together: `command(restarted)` on `nprocs` GPUs, or on the CPU if `kind` is "cpu"."""

    command: Callable[[bool], list[str]]
    nprocs: int
    kind: str  # gpu or cpu
    open_log: Callable[[], None]  # called before anything is logged: the processes make the run's folder
    max_restarts: int = 0
    hang_timeout: float = 0.0  # seconds without progress (600 more at the start) that count as hanging; 0: none


@contextlib.contextmanager
def stop_signals(handler: Callable[[int, Any], None], *, but: Container[int] = ()) -> Iterator[dict[int, Any]]:
    """Meanwhile `handler` takes STOP_SIGNALS, without `but` and those that are ignored, as by nohup.

    Yields what takes each of them otherwise.
    """
    taken = [each for each in STOP_SIGNALS if each not in but and signal.getsignal(each) is not signal.SIG_IGN]
    previous: dict[int, Any] = {signum: signal.signal(signum, handler) for signum in taken}
    try:
        yield previous
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)


# Called by the processes.


def launched() -> bool:
    """Whether a launcher, this one or Paddle's, started this process."""
    return "PADDLE_TRAINER_ID" in os.environ


def watched() -> bool:
    """Whether this launcher started this process."""
    return _LAUNCHER in os.environ


def take_part(function: Callable[[], int], *, hang_timeout: float = 0.0) -> int:
    """Run `function` as a process of a job: it dies with its launcher and reports its errors to it.

    Under another launcher, which does not detect hanging, the process ends itself after `hang_timeout` seconds without
    progress (600 more at the start; 0: never) and writes its stack to stderr.
    """
    global _shared, _own_timeout
    parent, shared = map(int, os.environ.pop(_LAUNCHER, "0:-1").split(":"))
    _die_with_launcher(parent)
    faulthandler.register(signal.SIGUSR1)
    _shared = shared if parent else None
    if not parent and hang_timeout:
        _own_timeout = hang_timeout
        _set_alarm(hang_timeout + _SECONDS_TO_START)
    try:
        return function()
    except Exception as error:
        if _shared is not None:
            mistake = isinstance(error, UserError)
            text = str(error) if mistake else traceback.format_exc()[-_MOST_TEXT:]
            record = {"code": 2 if mistake else 1, "at": time.monotonic(), "text": text}
            os.pwrite(_shared, f"{json.dumps(record)}\n".encode(), _BEAT.size)
            time.sleep(_SECONDS_TO_BE_ENDED)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()


def heartbeat() -> None:
    """Report progress to the launcher or, under another one, to the alarm. Takes a microsecond."""
    if _shared is not None:
        os.pwrite(_shared, _BEAT.pack(time.monotonic()), 0)
    elif _own_timeout and time.monotonic() - _alarm_set > _SECONDS_BETWEEN_ALARMS:
        _set_alarm(_own_timeout)


def _set_alarm(seconds: float) -> None:
    """End this process after `seconds`, wherever it hangs: the alarm does not need the interpreter."""
    global _alarm_set
    _alarm_set = time.monotonic()
    faulthandler.dump_traceback_later(seconds, exit=True)


def _die_with_launcher(parent: int) -> None:
    """Have Linux kill this process when its launcher dies; `parent` is 0 under Paddle's launcher."""
    if sys.platform == "linux" and (parent or "PADDLE_LOG_DIR" in os.environ):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


# The launcher.


def run(job: Job) -> int:
    """Run `job` and return the exit code: 0, or that of the first process that failed, in a shell's terms.

    If a process dies, fails or hangs, that is logged, the others are killed, and all are restarted, up to
    `max_restarts` times. STOP_SIGNALS are passed on: the processes save and end by themselves; a second signal,
    more than SECONDS_TO_REPEAT later, ends them at once. A UserError of a process is raised here. After a signal or a
    UserError nothing is restarted.
    """
    asked: list[_Signal] = []
    with stop_signals(lambda signum, frame: asked.append((signum, time.monotonic()))):
        restarts = 0
        while True:
            code, failed = _attempt(job, asked, restarted=restarts > 0)
            if not failed or asked or restarts == job.max_restarts:
                return code
            restarts += 1
            logger.warning("starting again: restart %d of %d", restarts, job.max_restarts)


class _Failure(NamedTuple):
    code: int
    reason: str
    text: str = ""
    at: float = 0.0
    hung: bool = False


@dataclass
class _Process:
    rank: int
    popen: subprocess.Popen
    shared: IO[bytes]

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def last_progress(self) -> float:
        return _BEAT.unpack(os.pread(self.shared.fileno(), _BEAT.size, 0))[0]

    def raised(self) -> _Failure | None:
        """The failure that the process has reported."""
        line = os.pread(self.shared.fileno(), 1 << 20, _BEAT.size)
        if not line.endswith(b"\n"):
            return None
        record = json.loads(line)
        reason = f"{self._name} failed: {record['text'].strip().splitlines()[-1]}"
        return _Failure(record["code"], reason, record["text"], record["at"])

    def died(self) -> _Failure | None:
        """What killed the process, unless it runs, has finished, or was asked to stop."""
        code = self.popen.poll()
        if not code or code in _STOPPED:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return _Failure(_as_shell(code), f"{self._name} {how}")

    def hung(self) -> _Failure:
        """The failure of a process that the others wait for."""
        seconds, stuck = max(0.0, time.monotonic() - self.last_progress()), self.stuck()
        reason = f"{self._name} has made no progress for {seconds:.0f} seconds"
        return _Failure(1, f"{reason}; it {stuck}" if stuck else reason, hung=True)

    def stuck(self) -> str:
        """What Linux says of a process that certainly does not wait for the others; else empty."""
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self.popen.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            return _STUCK.get(state, "")
        return ""

    @property
    def _name(self) -> str:
        return f"rank {self.rank} ({'log.txt' if self.rank == 0 else f'log_rank{self.rank}.txt'})"


def _attempt(job: Job, asked: list[_Signal], *, restarted: bool) -> tuple[int, bool]:
    """Run the processes once; the exit code, and whether one of them failed. Raises the UserError of a process."""
    command = job.command(restarted)
    processes = [_start(command, rank, env) for rank, env in enumerate(_environments(job.nprocs, job.kind))]
    try:
        code, failure = _watch(processes, job.hang_timeout, asked)
        failed = failure is not None and failure.code != 2  # which is a user's mistake
        if failure is not None and failed:
            sys.stderr.write(failure.text)
            job.open_log()
            logger.error("%s", failure.reason)
            if failure.hung:
                _show_where_they_are(processes)
    finally:
        _end(processes)
    if failure is not None and failure.text and not failed:
        raise UserError(failure.text)
    return code, failed


def _start(command: list[str], rank: int, env: dict[str, str]) -> _Process:
    shared = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
    os.pwrite(shared.fileno(), _BEAT.pack(time.monotonic() + _SECONDS_TO_START), 0)
    quiet = {"GLOG_minloglevel": "1"}  # Paddle logs every connection
    env = {**quiet, **os.environ, **env, _LAUNCHER: f"{os.getpid()}:{shared.fileno()}"}
    env.pop("PADDLE_MASTER", None)  # the meeting point of another launcher's processes, which Paddle would prefer
    # In a session of their own: Ctrl-C reaches this process alone, which passes it on once.
    popen = subprocess.Popen(command, env=env, pass_fds=[shared.fileno()], start_new_session=True)
    return _Process(rank, popen, shared)


def _watch(processes: list[_Process], hang_timeout: float, asked: list[_Signal]) -> tuple[int, _Failure | None]:
    """Pass signals on until all processes have ended or one has failed; the exit code and the failure."""
    passed_on = 0
    ends: float | None = None
    while True:
        for signum, at in asked[passed_on:]:
            passed_on += 1
            if at - asked[0][1] > SECONDS_TO_REPEAT:
                ends = time.monotonic() + _SECONDS_TO_OBEY  # a process that hangs ignores it
            for process in processes:
                if process.running:  # there SIGUSR1 prints the stack
                    process.popen.send_signal(signal.SIGTERM if signum == signal.SIGUSR1 else signum)
        failure = _first_failure(processes, hang_timeout)
        if failure is not None:
            return failure.code, failure
        codes = [process.popen.poll() for process in processes]
        stopped = [code for code in codes if code in _STOPPED]
        if stopped and ends is None:
            ends = time.monotonic() + _SECONDS_TO_STOP  # all stop together: the rest are stuck
        if None not in codes or (ends is not None and time.monotonic() > ends):
            if stopped or None not in codes:
                return _as_shell(stopped[0]) if stopped else 0, None
            return 128 + asked[0][0], None
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _first_failure(processes: list[_Process], hang_timeout: float) -> _Failure | None:
    """The failure that came first: when a process dies, the others lose it and raise errors of their own."""
    raised = [failure for failure in (process.raised() for process in processes) if failure]
    if raised:
        time.sleep(_SECONDS_TO_DIE)
    dead = [failure for failure in (process.died() for process in processes) if failure]
    if dead:  # gloo aborts a process when a peer is gone, or silent for 30 seconds
        first = min(dead, key=lambda failure: failure.code == _ABORTED)
        hung = _hung(processes, _SECONDS_OF_GLOO) if first.code == _ABORTED else None
        return first if hung is None else hung._replace(code=first.code, reason=f"{hung.reason}; {first.reason}")
    if raised:
        return min(raised, key=lambda failure: failure.at)
    return _hung(processes, hang_timeout)


def _hung(processes: list[_Process], timeout: float) -> _Failure | None:
    """Of the processes without progress, the one that the others wait for."""
    now = time.monotonic()
    running = sorted((process for process in processes if process.running), key=_Process.last_progress)
    if not timeout or not running or now - running[0].last_progress() < timeout:
        return None
    silent = [process for process in running if now - process.last_progress() > timeout / 2]
    return next((process for process in silent if process.stuck()), silent[0]).hung()


def _show_where_they_are(processes: list[_Process]) -> None:
    """Have the processes write their stacks to stderr, one after the other."""
    for process in processes:
        if process.running and not process.stuck():
            sys.stderr.write(f"rank {process.rank} is here:\n")
            sys.stderr.flush()
            process.popen.send_signal(signal.SIGUSR1)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _end(processes: list[_Process]) -> None:
    """Kill all that still run, at once: left alone, each would complain that the others are gone."""
    for process in processes:
        process.popen.kill()
    for process in processes:
        process.popen.wait()
        process.shared.close()


def _as_shell(code: int) -> int:
    return code if code >= 0 else 128 - code


def _environments(nprocs: int, kind: str) -> list[dict[str, str]]:
    """Paddle's variables for each process; GPUs are numbered among the visible ones."""
    endpoints = [f"127.0.0.1:{port}" for port in _free_ports(nprocs)]
    return [
        {
            "PADDLE_TRAINER_ID": str(i),
            "PADDLE_TRAINERS_NUM": str(nprocs),
            "PADDLE_CURRENT_ENDPOINT": endpoints[i],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            "PADDLE_LOCAL_SIZE": str(nprocs),
            **({f"FLAGS_selected_{kind}s": str(i)} if kind != "cpu" else {}),
        }
        for i in range(nprocs)
    ]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
