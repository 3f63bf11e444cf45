"""Exported networks as functions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np
import paddle

from paddlevit.errors import MissingFileError, UserError
from paddlevit.export.packages import needs

Predict = Callable[[np.ndarray], np.ndarray]
_Opened = tuple[Predict, Sequence[int]]  # the function, and [C, H, W] of its images


def open_exported(path: str | Path, *, threads: int = 0, device: str = "cpu") -> Predict:
    """What `export` wrote, as a function: images float32 [N, C, H, W] -> logits [N, K]. `threads` 0: all cores.

    `device` "gpu" is for Paddle's program; the other formats are computed by the CPU. Raises UserError where the file
    cannot be opened; the function does for images of another shape.
    """
    path = Path(path)
    if path.suffix not in _OPENERS:
        raise UserError(f"{path} is no exported network, allowed: {', '.join(f'*{suffix}' for suffix in _OPENERS)}")
    opener, weights = _OPENERS[path.suffix]
    for file in (path, path.with_suffix(weights)):
        if not file.is_file():
            raise MissingFileError(f"there is no file {file}")
    try:
        predict, shape = opener(path, threads, device)
    except UserError:
        raise
    except Exception as error:  # each package has its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged, or of another version: {said}") from error

    def checked(images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or list(images.shape[1:]) != list(shape) or images.dtype != np.float32:
            raise UserError(
                f"{path} takes images float32 [N, {', '.join(map(str, shape))}], not {images.dtype} "
                f"{list(images.shape)}"
            )
        return predict(images)

    return checked


def _open_program(path: Path, threads: int, device: str) -> _Opened:
    program = path.read_text(encoding="utf-8")
    shape = re.search(r'\.data","A":.*?\[-1,([\d,]+)\]', program)  # the predictor does not tell
    if shape is None:
        raise ValueError("it has no input of any number of images")
    inference = paddle.inference
    config = inference.Config(str(path), str(path.with_suffix(".pdiparams")))
    if device == "gpu":
        config.enable_use_gpu(100, 0)
    else:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(threads or os.cpu_count() or 1)
        # oneDNN computes CvT faster, but refuses HRFormer's nearest interpolation.
        if "nearest_interp" in program:
            config.disable_mkldnn()
        else:
            config.enable_mkldnn()
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    images = predictor.get_input_handle(predictor.get_input_names()[0])
    logits = predictor.get_output_handle(predictor.get_output_names()[0])

    def predict(batch: np.ndarray) -> np.ndarray:
        images.copy_from_cpu(np.ascontiguousarray(batch))
        predictor.run()
        return logits.copy_to_cpu()

    return predict, [int(side) for side in shape.group(1).split(",")]


def _open_onnx(path: Path, threads: int, device: str) -> _Opened:
    runtime = needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; paddle2onnx leaves constants that nothing uses, each worth a warning
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0]
    return lambda batch: session.run(None, {images.name: batch})[0], images.shape[1:]


def _open_openvino(path: Path, threads: int, device: str) -> _Opened:
    openvino = needs("openvino")
    # Without the hint it computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    network = openvino.Core().compile_model(path, "CPU", {k: v for k, v in settings.items() if v})
    shape = [side.get_length() for side in list(network.input(0).partial_shape)[1:]]
    return lambda batch: network(batch)[0], shape


# By the suffix of the file to open; the weights lie beside it, for ONNX in it.
_OPENERS = {".json": (_open_program, ".pdiparams"), ".onnx": (_open_onnx, ".onnx"), ".xml": (_open_openvino, ".bin")}
