"""Operators for CPUs, compiled where PADDLEVIT_KERNELS=1 asks for it and a compiler is there; else Paddle's own."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

_logger = logging.getLogger(__name__)
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def library() -> ctypes.CDLL | None:
    """kernels.cpp, compiled for this process in a second or two; None where nobody asked, or it cannot be."""
    if os.environ.get("PADDLEVIT_KERNELS") != "1":
        return None
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernels.so")
        command = [compiler, *_FLAGS, "-o", path, str(Path(__file__).with_suffix(".cpp"))]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            return ctypes.CDLL(path)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip()
            _logger.warning("PADDLEVIT_KERNELS: Paddle's own operators are used, as %s failed: %s", compiler, why)
            return None


def conv2d(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """F.conv2d without a bias; compiled where it is depthwise, 3 x 3, with a padding of 1 and a stride of 1 or 2."""
    fits = stride in (1, 2, [1, 1], [2, 2]) and padding in (1, [1, 1]) and dilation in (1, [1, 1])
    if not (fits and weight.shape == [groups, 1, 3, 3] and x.shape[1] == groups and _takes(x, weight)):
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)
    step = stride if isinstance(stride, int) else stride[0]
    sides = [(side - 1) // step + 1 for side in x.shape[2:]]
    return _Operator.apply("depthwise", [*x.shape[:2], *sides], [*x.shape, step], x, weight)


def gelu(x: Tensor) -> Tensor:
    """GELU (Hendrycks & Gimpel 2016), its exact form."""
    return _Operator.apply("gelu", x.shape, [int(x.size)], x) if _takes(x) else F.gelu(x)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation over the last axis."""
    channels = weight.shape[0]
    if x.shape[-1] != channels or not _takes(x, weight, bias):
        return F.layer_norm(x, channels, weight, bias, epsilon)
    return _Operator.apply("layer_norm", x.shape, [int(x.size) // channels, channels, epsilon], x, weight, bias)


def _takes(*tensors: Tensor) -> bool:
    if not paddle.in_dynamic_mode() or library() is None or paddle.get_device() != "cpu":
        return False
    return all(x.dtype == paddle.float32 and x.place.is_cpu_place() and x.size > 0 for x in tensors)


class _Operator(PyLayer):
    """Function `name` of the library, from tensors and numbers to a tensor of `shape`; its gradient is `name`_grad.

    There is no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, name: str, shape: list[int], numbers: list[float], *tensors: Tensor) -> Tensor:
        ctx.frozen = [x.stop_gradient for x in tensors]
        tensors = tuple(x.contiguous() for x in tensors)
        y = paddle.empty(shape, tensors[0].dtype)
        ctx.save_for_backward(*tensors)
        ctx.versions = [x.inplace_version for x in tensors]
        ctx.name, ctx.numbers = name, [ctypes.c_int64(n) if isinstance(n, int) else ctypes.c_float(n) for n in numbers]
        _call(name, [*tensors, y], ctx.numbers)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensor()
        assert ctx.versions == [x.inplace_version for x in tensors], f"an input of {ctx.name} was changed in place"
        grads = tuple(paddle.empty_like(x) for x in tensors)
        _call(f"{ctx.name}_grad", [*tensors, grad.contiguous(), *grads], ctx.numbers)
        return tuple(None if frozen else x for frozen, x in zip(ctx.frozen, grads))


def _call(name: str, tensors: list[Tensor], numbers: list) -> None:
    getattr(library(), name)(*(ctypes.c_void_p(x.data_ptr()) for x in tensors), *numbers)
