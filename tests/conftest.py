"""One thread a process, as tests run beside each other; paddlevit before paddle, so that its environment is set."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # NumPy and Paddle read it as they are imported, here and in programs

import pytest
from browser import CHROMIUM, browser

import paddlevit  # noqa: F401
from paddlevit.runtime.settings import keep_memory

# Kept, whatever the environment says: each worker, and each program that a test starts, would compile everything again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
keep_memory()

# What is ignored here, as under nohup, programs that tests start would ignore too.
for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)

LOGGER = logging.getLogger("paddlevit")
AS_IMPORTED = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate


def pytest_collection():
    """Examples that hypothesis draws have no deadline, which a busy machine would miss."""
    from hypothesis import settings

    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")


def pytest_collection_modifyitems(items):
    """The longest first, or one worker would still be at them when the others have nothing left."""
    longest = {"test_fake_device.py", "test_golden_training.py", "test_several_processes.py"}
    items.sort(key=lambda item: item.path.name not in longest)


def pytest_collection_finish():
    """Thousands of tests and all modules stay: the collector need not look through them, time after time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def package_logger():
    """A run that a test starts in this process, or one that a module's tests share, sets up the package's logger."""
    _put_back()
    yield
    _put_back()


@pytest.fixture(scope="session")
def once(request, tmp_path_factory):
    """once(name, make) -> the folder that make(folder) has filled, in whichever of pytest's workers came first."""
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        base = base.parent  # of all workers of this session

    def filled(name, make):
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with browser(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


def _put_back():
    for handler in set(LOGGER.handlers) - set(AS_IMPORTED[0]):
        handler.close()
    LOGGER.handlers[:], LOGGER.level, LOGGER.propagate = AS_IMPORTED
