"""A small web server for one model: a page to drop an image on, and the same by POST. Knows nothing of Paddle."""

from __future__ import annotations

from paddlevit.serve.app import create_app
from paddlevit.serve.batches import Model
from paddlevit.serve.guard import Connection, is_loopback
from paddlevit.serve.uploads import Limits

__all__ = ["Connection", "Limits", "Model", "create_app", "is_loopback"]
