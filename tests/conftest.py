"""paddlevit comes before paddle, so that its environment is set."""

from __future__ import annotations

import logging
from unittest import mock

import pytest
from browser import CHROMIUM, browser

import paddlevit  # noqa: F401  isort:skip
import paddle

LOGGER = logging.getLogger("paddlevit")
AS_IMPORTED = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate


@pytest.fixture
def quick_start():
    """Parameters start at zero, where only names and shapes matter: CvT-W24 takes 12 s to initialise."""
    paddle.nn.initializer.set_global_initializer(paddle.nn.initializer.Constant(0.0))
    with mock.patch.object(paddle.nn.Layer, "apply", lambda self, function: self):
        yield
    paddle.nn.initializer.set_global_initializer(None)


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
