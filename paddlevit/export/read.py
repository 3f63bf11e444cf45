"""Exported models as functions."""

from __future__ import annotations

import collections
import functools
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle

from paddlevit.errors import MissingFileError, UserError
from paddlevit.export.description import DESCRIPTION_FILE, read_description
from paddlevit.paddle_internals import set_cpu_threads
from paddlevit.runtime.settings import engine_threads

logger = logging.getLogger(__name__)

PRECISIONS = {"paddle": ("f32",), "onnx": ("f32",), "openvino": ("f32", "bf16", "int8")}  # by format

# A batch size that has come so often is compiled for, at most so many: in bf16 CvT takes 0.91 of the time, HRFormer
# 0.95, PiT and HVT 0.98. That costs 0.4 to 3 seconds, and the memory of the weights once more.
_OFTEN, _SIZES = 4, 2

Predict = Callable[[np.ndarray], np.ndarray]


class Exported:
    """An exported model as a function: images float32 [N, C, H, W] -> logits float32 [N, K].

    Threads take turns. After a fork only the process that has opened the file may call it. `engine` is what computes,
    "paddle", "onnx" or "openvino", and `precision` in what: "f32", "bf16" or "int8".
    """

    def __init__(self, path: Path, compute: Predict, image_shape: Sequence[int], precision: str = "f32") -> None:
        self.path = path
        self.engine = _OPENERS[path.suffix][0]
        self.image_shape = list(image_shape)
        self.precision = precision
        self._compute = compute
        self._lock = threading.Lock()  # a predictor has one set of buffers
        self._process = os.getpid()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Raises UserError for images of another shape or type, and in a forked process."""
        if images.ndim != 4 or list(images.shape[1:]) != self.image_shape or images.dtype != np.float32:
            raise UserError(
                f"{self.path} takes images float32 [N, {', '.join(map(str, self.image_shape))}], got {images.dtype} "
                f"{list(images.shape)}"
            )
        if os.getpid() != self._process:  # the threads that compute have not come along
            raise UserError(f"{self.path} was opened before this process was forked: open it in this process")
        with self._lock:
            return self._compute(images)


def exported_file(path: str | os.PathLike[str]) -> Path | None:
    """The exported file that `path` names: itself, or the newest in the folder; None where there is no export.json.

    Raises UserError for a file that export.json does not list.
    """
    path = Path(os.path.expanduser(path))
    folder = path if path.is_dir() else path.parent
    if not (folder / DESCRIPTION_FILE).is_file() or not (path.is_dir() or path.suffix in _OPENERS):
        return None
    files = read_description(folder)["files"]
    if path.is_dir():
        return path / files[-1]
    if path.name not in files:
        raise UserError(f"{path} is not in {folder / DESCRIPTION_FILE}, allowed: {', '.join(files)}")
    return path


def open_exported(path: str | Path, *, threads: int = 0, device: str = "cpu", precision: str = "f32") -> Exported:
    """What `export` wrote, as a function. `threads` 0: as many as OMP_NUM_THREADS says, or all cores.

    `device` "gpu" is for Paddle's program; the other formats run on the CPU. `precision` "bf16" and "int8" are for
    OpenVINO: a processor without bfloat16 runs in f32, with a warning; what a quantised file has not in int8 runs in
    f32. Raises UserError where the file cannot be opened.
    """
    path = Path(path)
    check_path(path)
    if path.suffix not in _OPENERS:
        raise UserError(f"{path} is not an exported model, allowed: {', '.join(f'*{suffix}' for suffix in _OPENERS)}")
    threads = threads or engine_threads()
    engine, opener, weights = _OPENERS[path.suffix]
    if precision not in PRECISIONS[engine]:
        allowed = ", ".join(PRECISIONS[engine])
        raise UserError(f"precision {precision} for {path}, allowed: {allowed} (others: OpenVINO)")
    for file in (path, path.with_suffix(weights)):
        if not file.is_file():
            raise MissingFileError(f"there is no file {file}")
    try:
        return opener(path, threads, device, precision)
    except UserError:
        raise
    except Exception as error:  # each package has its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged, or of another version: {said}") from error


def check_path(path: Path) -> None:
    """Raises UserError for a path that C++ libraries cannot be given."""
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        why = "its bytes are not UTF-8, or the locale does not say so (LC_ALL=C.UTF-8, or PYTHONUTF8=1)"
        raise UserError(f"exported models cannot lie in {path}: {why}") from None


def needs(package: str) -> Any:
    """The module `package`, of the extra for export. Raises UserError where it cannot be imported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        hint = "pip install '.[export]' in the clone"
        if package == "paddle2onnx" and sys.version_info >= (3, 13):
            hint = "it has no build for Python 3.13: export with 3.12 or older; any Python opens what that wrote"
        raise UserError(f"this format needs {package}: {hint} ({error})") from error


def _process_threads() -> int:
    """Threads that Paddle's operators and MKL begin with."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else os.cpu_count() or 1


def _open_program(path: Path, threads: int, device: str, precision: str) -> Exported:
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
        config.set_cpu_math_library_num_threads(threads)
        # oneDNN computes CvT faster, but refuses HRFormer's nearest interpolation.
        if "nearest_interp" in program:
            config.disable_mkldnn()
        else:
            config.enable_mkldnn()
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    set_cpu_threads(_process_threads())  # it has set its own number for the whole process
    images = predictor.get_input_handle(predictor.get_input_names()[0])
    logits = predictor.get_output_handle(predictor.get_output_names()[0])

    def compute(batch: np.ndarray) -> np.ndarray:
        images.copy_from_cpu(np.ascontiguousarray(batch))
        predictor.run()
        set_cpu_threads(_process_threads())  # now it was 1
        return logits.copy_to_cpu()

    return Exported(path, compute, [int(side) for side in shape.group(1).split(",")])


def _open_onnx(path: Path, threads: int, device: str, precision: str) -> Exported:
    runtime = needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; paddle2onnx leaves constants that nothing uses, each worth a warning
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0]
    return Exported(path, lambda batch: session.run(None, {images.name: batch})[0], images.shape[1:])


@functools.cache
def openvino_core() -> Any:
    """The process's own, which stays: each core that goes puts back the stack for signals that it found in its thread.

    Where that was of one that went before, it is not mapped any more, and the next Ctrl-C is a crash (2026.4).
    """
    return needs("openvino").Core()


def _open_openvino(path: Path, threads: int, device: str, precision: str) -> Exported:
    core = openvino_core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        logger.warning("this processor has no bfloat16: %s runs in f32", path)
        precision = "f32"
    # Without the hint it takes bfloat16 where the processor has it.
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", "INFERENCE_NUM_THREADS": threads}
    model = core.read_model(path)
    shape = [side.get_length() for side in list(model.input(0).partial_shape)[1:]]
    compiled = {-1: core.compile_model(model, "CPU", settings)}  # -1: any number of images
    seen: collections.Counter[int] = collections.Counter()

    def compute(batch: np.ndarray) -> np.ndarray:
        size = len(batch)
        seen[size] += 1
        if seen[size] == _OFTEN and len(compiled) <= _SIZES:
            try:
                model.reshape([size, *shape])
                compiled[size] = core.compile_model(model, "CPU", settings)
            except RuntimeError as error:  # as where memory runs out; it goes on as before
                logger.warning("%s is not compiled for batches of %d: %s", path, size, error)
        return compiled.get(size, compiled[-1])(batch)[0]

    return Exported(path, compute, shape, precision)


# By the suffix of the file to open: its engine, its opener, and where its weights are.
_OPENERS = {
    ".json": ("paddle", _open_program, ".pdiparams"),
    ".onnx": ("onnx", _open_onnx, ".onnx"),
    ".xml": ("openvino", _open_openvino, ".bin"),
}
