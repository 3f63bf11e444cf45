"""Images that cannot be read, where training goes on without them (DATA.ON_ERROR skip)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from paddlevit.errors import UserError

logger = logging.getLogger(__name__)


class BadImages:
    """Counts the images that were replaced, and names each of them once in the log."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._messages: set[str] = set()

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, messages: Iterable[str]) -> None:
        """Take note of messages that name images. Raises UserError where there are more than may be replaced."""
        for message in messages:
            if message in self._messages:
                continue
            self._messages.add(message)
            logger.warning("image %d of at most %s is skipped: %s", len(self), self.most, message)
            if self.most is not None and len(self) > self.most:
                raise UserError(
                    f"{len(self)} images cannot be read, allowed: {self.most} (DATA.MAX_BAD). The last one: {message}. "
                    "They are listed in the log; tools/prepare_data.py check finds all of them"
                )
