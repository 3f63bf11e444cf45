"""Models for deployment: a Paddle inference program, ONNX or OpenVINO, for batches of any size."""

from __future__ import annotations

from paddlevit.export.read import open_exported
from paddlevit.export.write import export

__all__ = ["export", "open_exported"]
