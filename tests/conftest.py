"""paddlevit comes before paddle, so that its flags are set."""

import logging

import pytest

import paddlevit  # noqa: F401


@pytest.fixture(autouse=True)
def package_logger():
    """A run that a test starts in this process sets up the package's logger: put it back."""
    logger = logging.getLogger("paddlevit")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    for handler in set(logger.handlers) - set(before[0]):
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before
