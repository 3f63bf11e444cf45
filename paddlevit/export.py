"""Networks for deployment: a Paddle inference program, ONNX or OpenVINO, for batches of any size."""

import contextlib
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import paddle
from paddle import nn

from paddlevit.errors import UserError

FORMATS = ("paddle", "onnx", "openvino")
OPSET = 17
Predict = Callable[[np.ndarray], np.ndarray]


def export(model: nn.Layer, image_shape: Sequence[int], fmt: str, folder: Path) -> Path:
    """Write `model` in evaluation as one of FORMATS into `folder`; the path of the file to open.

    Images are float32 [N, C, H, W] with [C, H, W] = `image_shape` and any N; the output is the logits [N, K]. Raises
    UserError where a package is missing.
    """
    assert fmt in FORMATS, fmt
    folder.mkdir(parents=True, exist_ok=True)
    if fmt == "paddle":
        return _save_program(model, image_shape, folder / "model")
    if fmt == "onnx":
        return _save_onnx(model, image_shape, folder / "model.onnx")
    openvino = _needs("openvino")
    with tempfile.TemporaryDirectory() as scratch:
        onnx = _save_onnx(model, image_shape, Path(scratch) / "model.onnx")
        openvino.save_model(openvino.convert_model(onnx), folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def open_exported(path: Path, *, threads: int = 0, device: str = "cpu") -> Predict:
    """What `export` wrote, as a function: images float32 [N, C, H, W] -> logits [N, K]. `threads` 0: all cores.

    `device` "gpu" is for Paddle's program; the other formats are computed by the CPU.
    """
    opener = {".json": _open_program, ".onnx": _open_onnx, ".xml": _open_openvino}[path.suffix]
    return opener(path, threads, device)


def _save_program(model: nn.Layer, image_shape: Sequence[int], stem: Path) -> Path:
    was_training = model.training
    model.eval()
    try:
        # The inputs' name goes by the specification, not by the parameter of forward().
        spec = paddle.static.InputSpec([None, *image_shape], "float32", "images")
        program = paddle.jit.to_static(model, input_spec=[spec], full_graph=True)
        with paddle.no_grad():
            paddle.jit.save(program, str(stem))
        program.forward.rollback()  # to_static puts itself into the model
    finally:
        if was_training:
            model.train()
    return stem.with_suffix(".json")


def _save_onnx(model: nn.Layer, image_shape: Sequence[int], path: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        program = _save_program(model, image_shape, Path(scratch) / "model")
        with _nothing_is_installed():
            # Its own optimisation would install packages by pip and change the environment of this process.
            _needs("paddle2onnx").export(
                str(program),
                str(program.with_suffix(".pdiparams")),
                str(path),
                opset_version=OPSET,
                optimize_tool="None",
                verbose=False,
            )
    assert path.is_file(), "paddle2onnx only logs its errors"
    return path


@contextlib.contextmanager
def _nothing_is_installed() -> Iterator[None]:
    name = "POLYGRAPHY_AUTOINSTALL_DEPS"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _open_program(path: Path, threads: int, device: str) -> Predict:
    inference = paddle.inference
    config = inference.Config(str(path), str(path.with_suffix(".pdiparams")))
    if device == "gpu":
        config.enable_use_gpu(100, 0)
    else:
        config.disable_gpu()
        # oneDNN, which is on by default, cannot compute nearest interpolation, and gets other parts of HRFormer wrong.
        config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(threads or os.cpu_count() or 1)
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    images = predictor.get_input_handle(predictor.get_input_names()[0])
    logits = predictor.get_output_handle(predictor.get_output_names()[0])

    def predict(batch: np.ndarray) -> np.ndarray:
        images.copy_from_cpu(np.ascontiguousarray(batch))
        predictor.run()
        return logits.copy_to_cpu()

    return predict


def _open_onnx(path: Path, threads: int, device: str) -> Predict:
    runtime = _needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def _open_openvino(path: Path, threads: int, device: str) -> Predict:
    openvino = _needs("openvino")
    # Without the hint it computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    network = openvino.Core().compile_model(path, "CPU", {k: v for k, v in settings.items() if v})
    return lambda batch: network(batch)[0]


def _needs(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"this format needs {package}: pip install 'paddlevit[export]' ({error})") from error
