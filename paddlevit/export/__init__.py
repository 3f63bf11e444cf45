"""Models for deployment: a Paddle inference program, ONNX or OpenVINO, for batches of any size."""

from __future__ import annotations

from paddlevit.export.description import DESCRIPTION_FILE, data_values, describe, read_description, with_file
from paddlevit.export.engines import ENGINES, CompiledLayer, choose_engine, compiled, compiled_for
from paddlevit.export.read import PRECISIONS, Exported, exported_file, open_exported
from paddlevit.export.write import FORMATS, Bound, complete_in, export, file_name

__all__ = [
    "DESCRIPTION_FILE",
    "ENGINES",
    "FORMATS",
    "PRECISIONS",
    "Bound",
    "CompiledLayer",
    "Exported",
    "choose_engine",
    "compiled",
    "compiled_for",
    "complete_in",
    "data_values",
    "describe",
    "export",
    "exported_file",
    "file_name",
    "open_exported",
    "read_description",
    "with_file",
]
