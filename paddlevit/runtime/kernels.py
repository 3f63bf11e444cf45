"""Operators for CPUs, compiled where PADDLEVIT_KERNELS=1 asks for it and a compiler is there; else Paddle's own."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import logging
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

_logger = logging.getLogger(__name__)
_off = contextvars.ContextVar("_off", default=False)
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
    if not (fits and weight.shape == [groups, 1, 3, 3] and x.shape[1] == groups and takes(x, weight)):
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)
    step = stride if isinstance(stride, int) else stride[0]
    sides = [(side - 1) // step + 1 for side in x.shape[2:]]
    return _Operator.apply("depthwise", [*x.shape[:2], *sides], [*x.shape, step], x, weight)


def gelu(x: Tensor) -> Tensor:
    """GELU (Hendrycks & Gimpel 2016), its exact form."""
    return _Operator.apply("gelu", x.shape, [int(x.size)], x) if takes(x) else F.gelu(x)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation over the last axis."""
    channels = weight.shape[0]
    if x.shape[-1] != channels or not takes(x, weight, bias):
        return F.layer_norm(x, channels, weight, bias, epsilon)
    return _Operator.apply("layer_norm", x.shape, [int(x.size) // channels, channels, epsilon], x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear."""
    if bias is None or not takes(x, weight, bias):
        return F.linear(x, weight, bias)
    return add_bias(paddle.matmul(x, weight), bias)


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """x + bias, which has the shape of x's last axes, or 1 in the last of them; in place: `x` is the caller's alone."""
    untaped = x.stop_gradient and not bias.stop_gradient and paddle.is_grad_enabled()  # the layer before is frozen
    if untaped or not takes(x, bias):
        return x + bias
    channels = int(bias.size)
    inner = math.prod(x.shape[x.ndim - bias.ndim :]) // channels
    numbers = [int(x.size) // (channels * inner), channels, inner]
    return _in_place("bias", numbers, x, bias) if x.stop_gradient else _Bias.apply(numbers, x, bias)


def softmax(x: Tensor) -> Tensor:
    """Over the last axis; in place: `x` is the caller's alone."""
    if not takes(x):
        return F.softmax(x)
    numbers = [int(x.size) // x.shape[-1], x.shape[-1]]
    return _in_place("softmax", numbers, x) if x.stop_gradient else _Softmax.apply(numbers, x)


def norm_gelu(x: Tensor, bias: Tensor, statistics: Sequence[Tensor], epsilon: float) -> Tensor:
    """GELU of x [N, C, H, W] + bias, batch-normalised by mean, variance, scale and shift; in place, without gradients.

    The caller has asked whether it `takes` them.
    """
    return _in_place("norm_gelu", [*x.shape[:2], math.prod(x.shape[2:]), epsilon], x, bias, *statistics)


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Meanwhile Paddle's own operators: its `grad` (3.3.1) refuses others, where it leaves out the parameters."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def takes(*tensors: Tensor) -> bool:
    """Whether operators are compiled, and for such tensors."""
    if _off.get() or not paddle.in_dynamic_mode() or library() is None or paddle.get_device() != "cpu":
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
        ctx.name, ctx.numbers = name, numbers
        _call(name, [*tensors, y], ctx.numbers)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensor()
        changed = any(x.inplace_version > version for x, version in zip(tensors, ctx.versions))  # less: recomputed
        assert not changed, f"an input of {ctx.name} was changed in place"
        grads = tuple(paddle.empty_like(x) for x in tensors)
        _call(f"{ctx.name}_grad", [*tensors, grad.contiguous(), *grads], ctx.numbers)
        return tuple(None if frozen else x for frozen, x in zip(ctx.frozen, grads))


class _Bias(PyLayer):
    """`add_bias` in place."""

    @staticmethod
    def forward(ctx: Any, numbers: list[float], x: Tensor, bias: Tensor) -> Tensor:
        ctx.numbers, ctx.bias = numbers, bias
        return _in_place("bias", numbers, x, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        if ctx.bias.stop_gradient:
            return grad, None
        bias_grad = paddle.empty_like(ctx.bias)
        _call("bias_grad", [grad.contiguous(), bias_grad], ctx.numbers)
        return grad, bias_grad


class _Softmax(PyLayer):
    """`softmax` in place."""

    @staticmethod
    def forward(ctx: Any, numbers: list[float], x: Tensor) -> Tensor:
        y = _in_place("softmax", numbers, x)
        ctx.numbers, ctx.version = numbers, y.inplace_version
        ctx.save_for_backward(y.detach())  # y itself would hold the node that holds it
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensor()
        # That a PyLayer returns what it was given counts as one change.
        assert y.inplace_version <= ctx.version + 1, "the result of softmax was changed in place"
        x_grad = paddle.empty_like(y)
        _call("softmax_grad", [y, grad.contiguous(), x_grad], ctx.numbers)
        return x_grad


def _in_place(name: str, numbers: list[float], x: Tensor, *others: Tensor) -> Tensor:
    tensors = [each.contiguous() for each in (x, *others)]
    _call(name, tensors, numbers)
    return tensors[0]


def _call(name: str, tensors: Sequence[Tensor], numbers: Sequence[float]) -> None:
    sizes = (ctypes.c_int64(n) if isinstance(n, int) else ctypes.c_float(n) for n in numbers)
    getattr(library(), name)(*(ctypes.c_void_p(x.data_ptr()) for x in tensors), *sizes)
