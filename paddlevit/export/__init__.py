"""Networks for deployment: a Paddle inference program, ONNX or OpenVINO, for batches of any size."""

from __future__ import annotations

from paddlevit.export.description import DESCRIPTION_FILE, data_values, describe, read_description, with_file
from paddlevit.export.read import Predict, open_exported
from paddlevit.export.write import FORMATS, export

__all__ = [
    "DESCRIPTION_FILE",
    "FORMATS",
    "Predict",
    "data_values",
    "describe",
    "export",
    "open_exported",
    "read_description",
    "with_file",
]
