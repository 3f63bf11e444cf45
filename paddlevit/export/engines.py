"""What computes a model's logits: Paddle, or OpenVINO or ONNX Runtime, for which it is exported in the process."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from typing import Callable

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlevit.errors import UserError
from paddlevit.export.read import PRECISIONS, Exported, open_exported
from paddlevit.export.write import export

ENGINES = ("auto", "paddle", "openvino", "onnx")


def choose_engine(engine: str) -> str:
    """`engine`, one of ENGINES; for auto: openvino where it is installed and the device is a CPU, else paddle."""
    if engine not in ENGINES:
        raise UserError(f"engine {engine}, allowed: {', '.join(ENGINES)}")
    if engine != "auto":
        return engine
    installed = all(importlib.util.find_spec(name) for name in ("openvino", "paddle2onnx"))
    return "openvino" if installed and paddle.device.get_device() == "cpu" else "paddle"


def compiled(
    model: nn.Layer,
    image_shape: Sequence[int],
    fmt: str,
    *,
    threads: int = 0,
    precision: str = "f32",
    calibration: Sequence[np.ndarray] | None = None,
) -> Exported:
    """`model` as `export` writes it and `open_exported` opens it; no file stays. Raises UserError as they do."""
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, image_shape, fmt, folder, calibration=calibration)
        device = paddle.device.get_device().split(":")[0]
        opened = open_exported(path, threads=threads, device=device, precision=precision)
        opened(np.zeros([1, *image_shape], "float32"))  # some read their files only now
    return opened


def compiled_for(
    model: nn.Layer,
    image_shape: Sequence[int],
    engine: str,
    precision: str,
    *,
    images: Callable[[], Sequence[np.ndarray]] | None = None,
) -> Exported | None:
    """`model` compiled for one of ENGINES; None for Paddle. `precision` auto is f32; int8 finds its ranges on `images`.
    Raises UserError, for int8 without these too.
    """
    engine, precision = choose_engine(engine), "f32" if precision == "auto" else precision
    allowed = [name for name in PRECISIONS[engine] if images or name != "int8"]
    if precision not in allowed:
        hint = "bf16: -engine openvino; int8: export -precision int8"
        listed = ", ".join(["auto", *allowed])
        raise UserError(f"precision {precision} of trained weights by {engine}, allowed: {listed} ({hint})")
    ranges = images() if images and precision == "int8" else None
    return None if engine == "paddle" else compiled(model, image_shape, engine, precision=precision, calibration=ranges)


class CompiledLayer(nn.Layer):
    """A compiled model as a layer for evaluation."""

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self._exported = exported

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W]."""
        return paddle.to_tensor(self._exported(images.numpy()))
