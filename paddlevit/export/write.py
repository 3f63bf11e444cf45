"""Networks into files for deployment."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddlevit.errors import UserError
from paddlevit.export.packages import needs

FORMATS = ("paddle", "onnx", "openvino")
OPSET = 17


def export(
    model: nn.Layer,
    image_shape: Sequence[int],
    fmt: str,
    folder: str | Path,
    *,
    calibration: Sequence[np.ndarray] | None = None,
) -> Path:
    """Write `model` in evaluation as `fmt` "paddle", "onnx" or "openvino" into `folder`; the path of the file to open.

    Images are float32 [N, C, H, W] with [C, H, W] = `image_shape` and any N; the output is the logits [N, K]. With
    batches of images as `calibration` OpenVINO's network computes in int8. Nothing is left half-written. Raises
    UserError for another format, where a package is missing, or where the folder cannot be written.
    """
    folder = Path(folder)
    if fmt not in FORMATS:
        raise UserError(f"format {fmt}, allowed: {', '.join(FORMATS)}")
    if calibration is not None and fmt != "openvino":
        raise UserError(f"calibration is for int8, which goes with the format openvino, not {fmt}")
    with _complete_in(folder) as scratch, _quiet():
        if fmt == "paddle":
            path = _save_program(model, image_shape, scratch / "model")
        elif fmt == "onnx":
            path = _save_onnx(model, image_shape, scratch / "model.onnx")
        else:
            stem = "model" if calibration is None else "model_int8"
            path = _save_openvino(model, image_shape, scratch / f"{stem}.xml", calibration)
    return folder / path.name


@contextlib.contextmanager
def _complete_in(folder: Path) -> Iterator[Path]:
    """A folder to write into; at the end its files take their places in `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            yield Path(scratch)
            for file in Path(scratch).iterdir():
                os.replace(file, folder / file.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {error.strerror or error}") from error


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
    paddle2onnx = needs("paddle2onnx")
    with tempfile.TemporaryDirectory() as scratch:
        program = _save_program(model, image_shape, Path(scratch) / "model")
        # Its own optimisation would install packages by pip and change the environment of this process.
        with _environment("POLYGRAPHY_AUTOINSTALL_DEPS", "0"), contextlib.suppress(SystemExit):
            paddle2onnx.export(
                str(program),
                str(program.with_suffix(".pdiparams")),
                str(path),
                opset_version=OPSET,
                optimize_tool="None",
                verbose=False,
            )
    assert path.is_file(), "paddle2onnx only logs its errors"
    return path


def _save_openvino(
    model: nn.Layer, image_shape: Sequence[int], path: Path, calibration: Sequence[np.ndarray] | None
) -> Path:
    openvino = needs("openvino")
    with tempfile.TemporaryDirectory() as scratch:
        onnx = _save_onnx(model, image_shape, Path(scratch) / "model.onnx")
        network = openvino.Core().read_model(onnx)  # convert_model() would report its use to OpenVINO's makers
        if calibration is not None:
            network = _int8(network, calibration)
        openvino.save_model(network, path, compress_to_fp16=False)
    return path


def _int8(network: Any, calibration: Sequence[np.ndarray]) -> Any:
    """Post-training quantisation: ranges of the activations are those that the images of `calibration` cause."""
    with _environment("NNCF_CI", "1"):  # otherwise it reports its use to its makers
        nncf = needs("nncf")
    return nncf.quantize(
        network,
        nncf.Dataset(calibration),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,  # keeps softmax and the normalisations in float32
        preset=nncf.QuantizationPreset.MIXED,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters say on their way, from C++ too, is heard only where they fail."""
    with tempfile.TemporaryFile("w+", buffering=1) as said:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        failed = True
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                yield
            failed = False
        finally:
            for i in (0, 1):
                os.dup2(kept[i], i + 1)
                os.close(kept[i])
            if failed:
                said.seek(0)
                sys.stderr.write(said.read())


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """The variable `name` of the environment has `value` for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
