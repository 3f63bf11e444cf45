"""Starts the processes of a job, supervises them, ends them together and restarts them.

Each process shares an unnamed file with the launcher; its time of change says when the process will count as hanging.
One that fails writes there why, keeps its connections open and waits to be killed: else those that miss it fail too.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Callable

from paddlevit.errors import UserError
from paddlevit.runtime.signals import STOP_SIGNALS, stop_signals

logger = logging.getLogger(__name__)

Command = Callable[[bool], list[str]]  # the words to run, at first or again
LAUNCHER = "PADDLEVIT_LAUNCHER"  # in the environment of a process: its launcher's id, and the file they share
_MASTERS = {"PADDLE_MASTER", "MASTER_ADDR", "MASTER_PORT"}  # where another launcher's processes meet
_SECONDS_TO_STOP = 60.0  # for the others, after the first has stopped; for the launcher, to end one that failed
_STOPPED = {code for signum in STOP_SIGNALS for code in (128 + signum, -signum)}

_beat: Callable[[], object] = int  # does nothing


def launched() -> bool:
    """Whether a launcher, this one or Paddle's, started this process."""
    return "PADDLE_TRAINER_ID" in os.environ


def heartbeat() -> None:
    """Report progress."""
    _beat()


def take_part(function: Callable[[], int], *, hang_timeout: float = 0.0) -> int:
    """Run `function` as a process of a job: it dies with its launcher, and tells it of errors and heartbeats."""
    global _beat
    parent, shared = map(int, os.environ.pop(LAUNCHER, "0:0").split(":"))
    if sys.platform == "linux" and (parent or "PADDLE_LOG_DIR" in os.environ):  # which Paddle's launcher sets
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent not in (0, os.getppid()):  # it is dead already
        os._exit(1)
    faulthandler.register(signal.SIGURG)  # which nobody else sends

    def beat(more: float = 0.0) -> None:
        if parent:  # by a clock that stands still while the machine is suspended
            os.utime(shared, (time.monotonic() + hang_timeout + more,) * 2)
        else:  # Paddle's launcher does not look: this process shows its stack and ends itself
            faulthandler.dump_traceback_later(hang_timeout + more, exit=True)

    if hang_timeout:
        beat(600.0)
        _beat = beat
    try:
        return function()
    except Exception as error:
        if parent:
            code, text = (2, str(error)) if isinstance(error, UserError) else (1, traceback.format_exc())
            os.pwrite(shared, bytes([code]) + text.encode(errors="surrogatepass"), 0)
            time.sleep(_SECONDS_TO_STOP)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()


def run(command: Command, nprocs: int, *, kind: str, open_log: Callable[[], None], restarts: int = 0) -> int:
    """Run `command(restarted)` in `nprocs` processes, each with its own device of a `kind`, such as gpu or cpu.

    Returns 0, or the exit code of the first that died, failed or hung, in a shell's terms. That is logged (`open_log`:
    the processes make the run's folder), and all are killed and started again, up to `restarts` times; but not after a
    UserError, which is raised here, nor a signal, which is passed on once, so that they save. A second one ends them.
    """
    asked: list[int] = []
    with stop_signals(asked.append, lambda signum: sys.exit(128 + signum)):
        for restart in range(restarts + 1):
            if restart:
                logger.warning("starting again: restart %d of %d", restart, restarts)
            code, reason = _attempt(command(restart > 0), nprocs, kind, asked)
            if reason:
                open_log()
                logger.error("%s", reason)
            if asked or code in {0, 2, *_STOPPED}:
                break
    return code if code >= 0 else 128 - code


class _Process(subprocess.Popen):
    def __init__(self, command: list[str], rank: int, endpoints: list[str], kind: str) -> None:
        self.name = f"rank {rank} ({f'log_rank{rank}.txt' if rank else 'log.txt'})"
        self.shared = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        env = {
            "GLOG_minloglevel": "1",  # Paddle logs every connection
            **{name: value for name, value in os.environ.items() if name not in _MASTERS},
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(len(endpoints)),
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            f"FLAGS_selected_{kind}s": str(rank),  # among the visible ones
            LAUNCHER: f"{os.getpid()}:{self.shared.fileno()}",
        }
        # In a session of its own: Ctrl-C reaches the launcher alone, which passes it on once.
        super().__init__(command, env=env, pass_fds=[self.shared.fileno()], start_new_session=True)

    def status(self) -> os.stat_result:
        """Of the shared file: when it will count as hanging; of one that has failed, a size, and when it did."""
        return os.fstat(self.shared.fileno())

    def stuck(self) -> bool:
        """Whether Linux says that it is stopped, or waits for a disk: then the others wait for it."""
        stat = Path(f"/proc/{self.pid}/stat")
        return stat.exists() and stat.read_text(encoding="utf-8").rpartition(") ")[2][0] in "TD"


def _attempt(command: list[str], nprocs: int, kind: str, asked: list[int]) -> tuple[int, str]:
    """Run the processes until all have ended or one has failed; the exit code, and why it failed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # of the first process, where all meet; nobody listens at the others
    processes: list[_Process] = []
    told = looks = 0
    try:
        for rank in range(nprocs):
            processes.append(_Process(command, rank, [f"127.0.0.1:{port + i}" for i in range(nprocs)], kind))
        while True:
            while asked and told < nprocs:
                processes[told].send_signal(asked[0])
                told += 1
            if failure := _failure(processes):
                return failure
            codes = [process.poll() for process in processes]
            stopped = _STOPPED.intersection(codes)
            if None not in codes or looks * 0.05 > _SECONDS_TO_STOP:
                return max(stopped, default=0), ""
            looks += bool(stopped)
    finally:  # all at once: left alone, each would complain that the others are gone
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            process.shared.close()


def _failure(processes: list[_Process]) -> tuple[int, str] | None:
    """Exit code and reason of the failure that came first: those that miss a dead process fail too."""
    failed = [process for process in processes if process.status().st_size]
    time.sleep(0.5 if failed else 0.05)  # peers see a broken connection before who broke it can be reaped
    dead = [process for process in processes if process.poll() not in {None, 0, *_STOPPED}]
    running = [process for process in processes if process.poll() is None and process not in failed]
    first = min(dead, key=lambda process: process.returncode == -signal.SIGABRT, default=None)
    aborted = first is not None and first.returncode == -signal.SIGABRT  # as gloo does where it misses another
    if first and not (aborted and failed):
        code = first.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        missed = f", maybe as it missed {_silent(running).name}" if aborted and running else ""
        return code, f"{first.name} {how}{missed}"
    if failed:
        first = min(failed, key=lambda process: process.status().st_mtime)
        code, text = first.shared.read(1)[0], first.shared.read().decode(errors="surrogatepass")
        if code == 2:
            raise UserError(text)
        sys.stderr.write(text)
        return code, f"{first.name} failed: {text.strip().splitlines()[-1]}"
    if all(process.status().st_mtime > time.monotonic() for process in running):
        return None
    return 1, f"{_silent(running).name} has made no progress within -hang_timeout"


def _silent(running: list[_Process]) -> _Process:
    """The one that the others wait for; all show where they are."""
    for process in running:
        sys.stderr.write(f"{process.name} is here:\n")
        sys.stderr.flush()
        process.send_signal(signal.SIGURG)
        time.sleep(0.05)
    oldest = min(process.status().st_mtime for process in running)
    about = [process for process in running if process.status().st_mtime < oldest + 60]  # silent for about as long
    return min(about, key=lambda process: (not process.stuck(), process.status().st_mtime))
