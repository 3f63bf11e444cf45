"""Models into files for deployment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import paddle
from paddle import nn

from paddlevit.errors import UserError
from paddlevit.export.description import DESCRIPTION_FILE, read_description
from paddlevit.export.read import check_path, needs, openvino_core
from paddlevit.layers import evaluating
from paddlevit.runtime.streams import quiet

FORMATS = ("paddle", "onnx", "openvino")
OPSET = 17
_OUTPUT = '"fetch_name_0"'  # what jit.save calls the first output, with no way to say otherwise

_ITERATIONS = 5  # operators that mixed int8 takes back one by one; each is a pass over the labelled images


class Bound(NamedTuple):
    """What int8 may cost: at most `max_drop` points of the top-1 on `batches` of images and labels."""

    batches: Sequence[tuple[np.ndarray, np.ndarray]]
    max_drop: float


def export(
    model: nn.Layer,
    image_shape: Sequence[int],
    fmt: str,
    folder: str | Path,
    *,
    calibration: Sequence[np.ndarray] | None = None,
    bound: Bound | None = None,
) -> Path:
    """Write `model` in evaluation as `fmt` "paddle", "onnx" or "openvino" into `folder`; the path of the file to open.

    Images are float32 [N, C, H, W] with [C, H, W] = `image_shape` and any N; the output is the logits [N, K]. With
    batches of images as `calibration` OpenVINO's file computes in int8; with a `bound` too, operators that cost too
    much top-1 stay in f32. Nothing is left half-written. Raises UserError for another format, where a package is
    missing, or where the folder cannot be written.
    """
    folder = Path(folder)
    check_path(folder)
    if fmt not in FORMATS:
        raise UserError(f"format {fmt}, allowed: {', '.join(FORMATS)}")
    if calibration is not None and fmt != "openvino":
        raise UserError(f"calibration is for int8, which goes with the format openvino, not {fmt}")
    name = file_name(fmt, int8=calibration is not None)
    if (folder / DESCRIPTION_FILE).is_file() and name in read_description(folder)["files"]:
        raise UserError(f"{folder / DESCRIPTION_FILE} describes another {name}: export into another folder")
    with complete_in(folder) as scratch, quiet():
        if fmt == "paddle":
            _save_program(model, image_shape, scratch / name)
        elif fmt == "onnx":
            _save_onnx(model, image_shape, scratch / name)
        else:
            _save_openvino(model, image_shape, scratch / name, calibration, bound)
    return folder / name


def file_name(fmt: str, *, int8: bool = False) -> str:
    """What `export` calls the file to open."""
    return {"paddle": "model.json", "onnx": "model.onnx", "openvino": "model_int8.xml" if int8 else "model.xml"}[fmt]


@contextlib.contextmanager
def complete_in(folder: Path) -> Iterator[Path]:
    """A folder to write into; at the end its files take their places in `folder`, a description last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            yield Path(scratch)
            files = sorted(Path(scratch).iterdir(), key=lambda file: file.name == DESCRIPTION_FILE)
            if files and files[-1].name == DESCRIPTION_FILE:  # the old one must not stand beside new files
                (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
            for file in files:
                os.replace(file, folder / file.name)
    except UserError:  # of which some are OSErrors
        raise
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {error.strerror or error}") from error


class _Traced(nn.Layer):
    """A model whose Python runs as it is: to translate control flow, which it has none of, takes most of the time."""

    def __init__(self, model: nn.Layer) -> None:
        super().__init__()
        self.model = model

    @paddle.jit.not_to_static
    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.model(images)


def _save_program(model: nn.Layer, image_shape: Sequence[int], path: Path) -> None:
    spec = paddle.static.InputSpec([None, *image_shape], "float32", "images")
    with evaluating(model), paddle.no_grad():
        program = paddle.jit.to_static(_Traced(model), input_spec=[spec], full_graph=True)
        paddle.jit.save(program, str(path.with_suffix("")))
    text = path.read_text(encoding="utf-8")
    assert text.count(_OUTPUT) == 1, "a model has one output"
    path.write_text(text.replace(_OUTPUT, '"logits"'), encoding="utf-8")


def _save_onnx(model: nn.Layer, image_shape: Sequence[int], path: Path) -> None:
    paddle2onnx, onnx = needs("paddle2onnx"), needs("onnx")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "model.json"
        _save_program(model, image_shape, program)
        with contextlib.suppress(SystemExit):
            paddle2onnx.export(
                str(program),
                str(program.with_suffix(".pdiparams")),
                str(path),
                opset_version=OPSET,
                optimize_tool="None",  # the others install packages by pip and change the environment
                verbose=False,
            )
    assert path.is_file(), "paddle2onnx only logs its errors"
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"  # paddle2onnx gives each a batch dimension of its own
    onnx.save(proto, path)


def _save_openvino(
    model: nn.Layer,
    image_shape: Sequence[int],
    path: Path,
    calibration: Sequence[np.ndarray] | None,
    bound: Bound | None,
) -> None:
    openvino = needs("openvino")
    with tempfile.TemporaryDirectory() as scratch:
        onnx = Path(scratch) / "model.onnx"
        _save_onnx(model, image_shape, onnx)
        converted = openvino_core().read_model(onnx)  # convert_model() would report its use to OpenVINO's makers
        if calibration is not None:
            converted = _int8(converted, calibration, bound)
        openvino.save_model(converted, path, compress_to_fp16=False)


def _int8(converted: Any, calibration: Sequence[np.ndarray], bound: Bound | None) -> Any:
    """Post-training quantisation: ranges of the activations are those that the images of `calibration` cause."""
    with mock.patch.dict(os.environ, NNCF_CI="1"):  # otherwise it reports its use to its makers
        nncf = needs("nncf")
    how = {
        "subset_size": len(calibration),
        "model_type": nncf.ModelType.TRANSFORMER,  # keeps softmax and the normalisations in float32
        "preset": nncf.QuantizationPreset.MIXED,
    }
    ranges = nncf.Dataset(calibration)
    if bound is None:
        return nncf.quantize(converted, ranges, **how)
    return nncf.quantize_with_accuracy_control(
        converted,
        ranges,
        nncf.Dataset(bound.batches),
        _top1,
        max_drop=bound.max_drop / 100,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(max_num_iterations=_ITERATIONS),
        **how,
    )


def _top1(model: Any, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, None]:
    """The share of right answers, and no metric by image, as NNCF asks for it."""
    return float(np.concatenate([model(images)[0].argmax(1) == labels for images, labels in batches]).mean()), None
