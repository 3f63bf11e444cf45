"""One thread a process, as tests run beside each other; paddlevit before paddle, so that its environment is set."""

from __future__ import annotations

import logging
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # NumPy and Paddle read it as they are imported, here and in programs

import pytest
from browser import CHROMIUM, browser

import paddlevit  # noqa: F401

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


@pytest.fixture(autouse=True)
def package_logger():
    """A run that a test starts in this process, or one that a module's tests share, sets up the package's logger."""
    _put_back()
    yield
    _put_back()


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
