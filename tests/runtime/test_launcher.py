"""The launcher over small processes of its own: who is blamed, what is ended, when it starts again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from paddlevit.errors import UserError
from paddlevit.runtime import launcher, signals

ROOT = Path(__file__).resolve().parents[2]

# The package without its __init__, which imports paddle: these processes start in no time.
HEAD = f"""
import os, signal, sys, time, types
package = types.ModuleType("paddlevit")
package.__path__ = [{str(ROOT / "paddlevit")!r}]
sys.modules["paddlevit"] = package
from paddlevit.runtime import launcher
from paddlevit.errors import UserError
rank, folder, restarted = int(os.environ["PADDLE_TRAINER_ID"]), sys.argv[1], sys.argv[2] == "True"
open(f"{{folder}}/pid{{rank}}", "w").write(str(os.getpid()))

def wait_until_rank_1_is_dead():
    while not os.path.exists(f"{{folder}}/pid1") or not (pid := open(f"{{folder}}/pid1").read()):
        time.sleep(0.01)
    while open(f"/proc/{{pid}}/stat").read().split()[2] != "Z":
        pass

def work():
"""


def work(folder, body, hang_timeout=0.0):
    """The words that run `body`, the inside of a function, as a process of a job."""
    script = folder / "work.py"
    tail = f"    return 0\n\nsys.exit(launcher.take_part(work, hang_timeout={hang_timeout}))\n"
    script.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    ") + tail)
    return lambda restarted: [sys.executable, str(script), str(folder), str(restarted)]


def run(folder, body, restarts=0, **options):
    """Two processes that run `body`."""
    return launcher.run(work(folder, body, **options), 2, kind="cpu", open_log=lambda: None, restarts=restarts)


def gone(folder):
    return not any(Path(f"/proc/{path.read_text() or 'none'}").exists() for path in folder.glob("pid*"))


def wait_until(happens, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ready(folder):
    return all((folder / f"ready{rank}").exists() for rank in range(2))


@pytest.fixture(autouse=True)
def log(caplog):
    """What the launcher logs: the package's logger stands alone, once a run has set it up."""
    package = logging.getLogger("paddlevit")
    package.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="paddlevit")
    package.propagate = False
    yield caplog
    package.removeHandler(caplog.handler)


def test_all_is_well(tmp_path):
    body = """
        names = ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_CURRENT_ENDPOINT")
        open(f"{folder}/env{rank}", "w").write(" ".join(os.environ[name] for name in names))
    """
    assert run(tmp_path, body) == 0
    seen = [(tmp_path / f"env{rank}").read_text().split() for rank in range(2)]
    endpoints = seen[0][2].split(",")
    assert len(set(endpoints)) == 2
    assert seen == [[str(rank), "2", ",".join(endpoints), endpoints[rank]] for rank in range(2)]


def test_gpus_are_counted_among_the_visible_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    command = work(tmp_path, "assert os.environ['FLAGS_selected_gpus'] == str(rank)\n")
    assert launcher.run(command, 2, kind="gpu", open_log=lambda: None) == 0


def test_the_error_of_the_first_to_fail_is_the_only_one_told(tmp_path, log, capfd):
    body = """
        if rank == 1:
            raise RuntimeError("the first error")
        time.sleep(60)
    """
    start = time.monotonic()
    assert run(tmp_path, body) == 1
    assert time.monotonic() - start < 40
    assert gone(tmp_path)
    error = capfd.readouterr().err
    assert error.count("Traceback") == 1 and error.endswith("RuntimeError: the first error\n")
    assert log.messages == ["rank 1 (log_rank1.txt) failed: RuntimeError: the first error"]


def test_a_process_that_was_killed_is_blamed_rather_than_those_that_miss_it(tmp_path, log, capfd):
    body = """
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_until_rank_1_is_dead()
        raise RuntimeError("rank 1 is gone")
    """
    assert run(tmp_path, body) == 137
    assert log.messages == ["rank 1 (log_rank1.txt) was killed by SIGKILL"]
    assert capfd.readouterr().err == ""


def test_gloo_aborts_a_process_that_misses_another(tmp_path, log):
    body = """
        if rank == 0:
            wait_until_rank_1_is_dead()
        os.kill(os.getpid(), signal.SIGABRT if rank == 0 else signal.SIGSEGV)
    """
    assert run(tmp_path, body) == 139
    assert log.messages == ["rank 1 (log_rank1.txt) was killed by SIGSEGV"]


def test_gloo_aborts_a_process_that_has_waited_too_long_for_another(tmp_path, log):
    body = """
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        state = ""
        while state != "T":
            pid = open(f"{folder}/pid1").read() if os.path.exists(f"{folder}/pid1") else ""
            state = open(f"/proc/{pid}/stat").read().split()[2] if pid else ""
        os.abort()
    """
    assert run(tmp_path, body, hang_timeout=60) == 134
    assert log.messages == ["rank 0 (log.txt) was killed by SIGABRT, maybe as it missed rank 1 (log_rank1.txt)"]


def test_a_users_mistake_is_raised_here_and_not_tried_again(tmp_path, log, capfd):
    body = """
        open(f"{folder}/starts{rank}", "a").write("x")
        if rank == 1:
            raise UserError("an image cannot be read")
        time.sleep(60)
    """
    with pytest.raises(UserError, match="^an image cannot be read$"):
        run(tmp_path, body, restarts=3)
    assert (tmp_path / "starts1").read_text() == "x"
    assert gone(tmp_path) and log.messages == [] and capfd.readouterr().err == ""


@pytest.mark.parametrize(("failures", "restarts", "code"), [(2, 2, 0), (2, 1, 3), (1, 0, 3)])
def test_it_starts_again_as_often_as_it_may(tmp_path, log, failures, restarts, code):
    body = f"""
        if rank == 1:
            with open(f"{{folder}}/starts", "a") as file:
                file.write("r" if restarted else "f")
            if os.path.getsize(f"{{folder}}/starts") <= {failures}:
                os._exit(3)
        elif {restarts} < {failures} or not restarted:
            time.sleep(60)  # as one that misses the other
    """
    assert run(tmp_path, body, restarts=restarts) == code
    attempts = 1 + min(failures, restarts)
    assert (tmp_path / "starts").read_text() == "f" + "r" * (attempts - 1)
    assert [message for message in log.messages if "again" in message] == [
        f"starting again: restart {n} of {restarts}" for n in range(1, attempts)
    ]


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_all_are_ended(tmp_path, log, capfd):
    body = """
        launcher.heartbeat()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    """
    start = time.monotonic()
    assert run(tmp_path, body, hang_timeout=1.0) == 1
    assert 1.0 < time.monotonic() - start < 40
    assert log.messages == ["rank 1 (log_rank1.txt) has made no progress within -hang_timeout"]
    assert gone(tmp_path)
    here, waited, *_ = capfd.readouterr().err.splitlines()
    assert here == "rank 0 (log.txt) is here:" and "most recent call" in waited


@pytest.mark.slow
def test_the_one_that_has_been_silent_longest_is_named(tmp_path, log):
    body = """
        launcher.heartbeat()
        for _ in range(0 if rank == 1 else 5):
            time.sleep(0.1)
            launcher.heartbeat()
        time.sleep(60)
    """
    assert run(tmp_path, body, hang_timeout=1.0) == 1
    assert log.messages == ["rank 1 (log_rank1.txt) has made no progress within -hang_timeout"]


@pytest.mark.slow
def test_a_slow_start_and_steady_steps_are_no_hang(tmp_path):
    body = """
        time.sleep(2.5)
        for _ in range(10):
            launcher.heartbeat()
            time.sleep(0.2)
    """
    assert run(tmp_path, body, hang_timeout=1.5) == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_are_passed_on_and_no_reason_to_start_again(tmp_path, log, signum, code):
    body = f"""
        signal.signal({signum:d}, lambda *_: sys.exit({code}))
        open(f"{{folder}}/ready{{rank}}", "w").close()
        time.sleep(60)
    """

    def ask():
        wait_until(lambda: ready(tmp_path))
        os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    thread = threading.Thread(target=ask)
    thread.start()
    assert run(tmp_path, body, restarts=2) == code
    thread.join()
    assert log.messages == []
    assert signal.getsignal(signum) is before


def test_a_failure_after_a_signal_is_no_reason_to_start_again(tmp_path, log):
    body = """
        open(f"{folder}/starts{rank}", "a").write("x")
        signal.signal(signal.SIGTERM, lambda *_: os._exit(3) if rank else None)
        open(f"{folder}/ready{rank}", "w").close()
        while rank == 0 and not os.path.exists(f"{folder}/ready1"):
            time.sleep(0.01)
        if rank == 0:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    """
    assert run(tmp_path, body, restarts=2) == 3
    assert (tmp_path / "starts0").read_text() == "x"


def test_a_process_that_does_not_stop_with_the_others_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "_SECONDS_TO_STOP", 0.5)
    assert run(tmp_path, "sys.exit(143) if rank else time.sleep(60)\n", restarts=1) == 143
    assert gone(tmp_path)


@pytest.mark.slow
def test_a_second_signal_ends_processes_that_do_not_hear_it(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_SECONDS_TO_REPEAT", 0.2)
    body = """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        open(f"{folder}/ready{rank}", "w").close()
        time.sleep(60)
    """

    def ask():
        wait_until(lambda: ready(tmp_path))
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.4)

    thread = threading.Thread(target=ask)
    thread.start()
    start = time.monotonic()
    with pytest.raises(SystemExit, match="^143$"):
        run(tmp_path, body, restarts=2)
    assert time.monotonic() - start < 40 and gone(tmp_path)
    thread.join()


def test_where_other_launchers_meet_is_not_passed_on(tmp_path, monkeypatch):
    """Paddle would look for the first process there."""
    for name in ("PADDLE_MASTER", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "10.255.255.1:49178")
    assert run(tmp_path, "assert not any('MASTER' in name for name in os.environ)\n") == 0


@pytest.mark.slow
def test_under_another_launcher_a_process_that_hangs_ends_itself(tmp_path):
    body = """
        for _ in range(3):
            launcher.heartbeat()
            time.sleep(0.3)
        time.sleep(60)
    """
    command = work(tmp_path, body, hang_timeout=1.0)
    start = time.monotonic()
    env = {**os.environ, "PADDLE_TRAINER_ID": "1"}
    result = subprocess.run(command(False), capture_output=True, text=True, env=env, timeout=300, check=False)
    assert result.returncode == 1
    assert 1.5 < time.monotonic() - start < 40
    assert "Timeout" in result.stderr and "work.py" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent is dead")
@pytest.mark.slow
def test_no_process_outlives_its_launcher(tmp_path):
    body = """
        open(f"{folder}/ready{rank}", "w").close()
        time.sleep(60)
    """
    command = work(tmp_path, body)(False)
    (tmp_path / "start.py").write_text(
        HEAD.split("rank, folder")[0]
        + f"launcher.run(lambda restarted: {command!r}, 2, kind='cpu', open_log=lambda: None)\n"
    )
    process = subprocess.Popen([sys.executable, str(tmp_path / "start.py")])
    wait_until(lambda: ready(tmp_path))
    process.kill()
    process.wait()
    wait_until(lambda: gone(tmp_path), seconds=10)


def test_a_heartbeat_without_a_launcher_does_nothing():
    launcher.heartbeat()
