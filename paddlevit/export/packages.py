"""The packages that the formats need, which are an extra."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from paddlevit.errors import UserError


def needs(package: str) -> Any:
    """The module `package`. Raises UserError where it cannot be imported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        hint = "pip install '.[export]' in the clone"
        if package == "paddle2onnx" and sys.version_info >= (3, 13):
            hint = (
                "there is none for Python 3.13 and later, so export with 3.12 or older; any Python opens what it wrote"
            )
        raise UserError(f"this format needs {package}: {hint} ({error})") from error
