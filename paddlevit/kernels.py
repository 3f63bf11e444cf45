"""Operations with forward or backward passes that are faster than Paddle's own kernels on a CPU; equal in value.

Elsewhere (on a GPU, in a static program, in half precision) each of them is the plain operation. Paddle's CPU kernels
do the arithmetic well; what they lose time with is sums over rows, biases, and scattering in a convolution's gradient.

Where `training` is true and all that they take wants its gradient, they are nodes of their own in Paddle's graph. Such
nodes know `Tensor.backward` and `paddle.grad` of everything, but not `paddle.grad` of a few tensors. That is asked of
networks in evaluation, which have Paddle's nodes.
"""

import math
from typing import Any, Tuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

# Below this many elements the calls cost more than what they save.
FEW = 2**16


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, training: bool) -> Tensor:
    """x @ weight + bias; [..., in] -> [..., out]. The bias rides along in the matrix product, in both directions."""
    if not on_cpu(x):
        return F.linear(x, weight, bias)
    rows = x.reshape([-1, x.shape[-1]])
    if training and _want_gradients(x, weight, bias):
        y = _Linear.apply(rows, weight, bias)
    elif paddle.is_grad_enabled():
        y = F.linear(rows, weight, bias)  # the gradient of addmm crashes where some are frozen
    else:
        y = paddle.addmm(bias, rows, weight)
    return y.reshape([*x.shape[:-1], weight.shape[1]])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float, training: bool) -> Tensor:
    """Layer normalisation over the last axis; the same shape."""
    width = x.shape[-1]
    if not training or not on_cpu(x) or x.size < FEW or not _want_gradients(x, weight, bias):
        return F.layer_norm(x, width, weight, bias, epsilon)
    return _LayerNorm.apply(x.reshape([-1, width]), weight, bias, epsilon).reshape(x.shape)


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x) with the exact normal distribution function Phi (Hendrycks & Gimpel 2016, section 2)."""
    if not on_cpu(x) or x.size < FEW or (paddle.is_grad_enabled() and x.stop_gradient):
        return F.gelu(x)
    return _Gelu.apply(x) if _want_gradients(x) else _phi(x).multiply_(x)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that CvT uses (Hendrycks & Gimpel 2016, section 2)."""
    if not on_cpu(x):
        return x * F.sigmoid(1.702 * x)
    # The same by tanh, which takes less than half the time of sigmoid.
    if paddle.is_grad_enabled():
        return x * (0.5 + 0.5 * paddle.tanh(0.851 * x))
    return (0.851 * x).tanh_().scale_(0.5, 0.5).multiply_(x)


def conv2d(x: Tensor, layer: nn.Conv2D) -> Tensor:
    """The convolution of `layer` without its bias; [N, in, H, W] -> [N, out, H', W']."""
    options = (layer._stride, layer._padding, layer._dilation, layer._groups)
    own = layer.training and _is_reversible(layer) and on_cpu(x) and _want_gradients(x, layer.weight)
    if not own:
        return F.conv2d(x, layer.weight, None, *options)
    # Two roads for the gradient: Paddle's kernel gives that of the filters, _InputGradient that of the input.
    y = F.conv2d(x.detach(), layer.weight, None, *options)
    return _InputGradient.apply(y, x, layer.weight.detach(), layer._groups)


def conv_norm(x: Tensor, layer: nn.Conv2D, norm: nn.BatchNorm2D) -> Tensor:
    """norm(layer(x)); in evaluation without hooks the normalisation is part of the filters."""
    watched = layer._forward_pre_hooks or layer._forward_post_hooks
    if norm.training or watched or paddle.is_grad_enabled() or not paddle.in_dynamic_mode():
        return norm(layer(x))
    factor = norm.weight * paddle.rsqrt(norm._variance + norm._epsilon)
    shift = norm.bias - norm._mean * factor
    if layer.bias is not None:
        shift = shift + layer.bias * factor
    filters = layer.weight * factor.reshape([-1, 1, 1, 1])
    y = F.conv2d(x, filters, None, layer._stride, layer._padding, layer._dilation, layer._groups)
    return add_bias(y, shift)


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """y [N, C, H, W] plus bias [C], in the precision of y.

    Under AMP a convolution gives half precision. Paddle would add a bias in float32 to it, and all that follows would
    be in float32 as well.
    """
    bias = bias.reshape([-1, 1, 1])
    return y + (bias if bias.dtype == y.dtype else bias.astype(y.dtype))


def on_cpu(x: Tensor) -> bool:
    """Whether `x` is computed at once, by the CPU, in full precision."""
    if not paddle.in_dynamic_mode():
        return False
    return x.place.is_cpu_place() and x.dtype in (paddle.float32, paddle.float64)


def _want_gradients(*tensors: Tensor) -> bool:
    """Whether all of `tensors` do."""
    return paddle.is_grad_enabled() and not any(tensor.stop_gradient for tensor in tensors)


def _is_reversible(layer: nn.Conv2D) -> bool:
    """Whether the input's gradient is a convolution like `layer`: it keeps the map's size, in one group or all."""
    _, per_group, height, width = layer.weight.shape
    same = height == width > 1 and height % 2 == 1 and layer._padding in (height // 2, [height // 2] * 2)
    plain = layer._stride in (1, [1, 1]) and layer._dilation in (1, [1, 1]) and layer._padding_mode == "zeros"
    depthwise = per_group == 1 and layer.weight.shape[0] == layer._groups
    return same and plain and (depthwise or layer._groups == 1)


def _sum_rows(x: Tensor) -> Tensor:
    """[rows, columns] -> [columns]; as a matrix product it is several times as fast as a sum."""
    return paddle.matmul(paddle.ones([1, x.shape[0]], dtype=x.dtype), x).reshape([-1])


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return paddle.addmm(bias, x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, ...]:
        x, weight = ctx.saved_tensor()
        by_input = paddle.matmul(grad, weight, transpose_y=True)
        return by_input, paddle.matmul(x, grad, transpose_x=True), _sum_rows(grad)


class _LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        ctx.epsilon = epsilon
        ctx.save_for_backward(x, weight)
        return F.layer_norm(x, x.shape[-1], weight, bias, epsilon)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, ...]:
        x, weight = ctx.saved_tensor()
        width = x.shape[-1]
        average = paddle.full([width, 1], 1.0 / width, dtype=x.dtype)
        normed = x - paddle.matmul(x, average)
        inverse_std = paddle.rsqrt(paddle.matmul(normed * normed, average) + ctx.epsilon)
        normed.multiply_(inverse_std)
        by_weight = grad * normed
        weighted_average = weight.reshape([width, 1]) / width
        by_input = grad * weight
        by_input.subtract_(paddle.matmul(grad, weighted_average))
        by_input.subtract_(normed.multiply_(paddle.matmul(by_weight, weighted_average)))
        return by_input.multiply_(inverse_std), _sum_rows(by_weight), _sum_rows(grad)


def _phi(x: Tensor) -> Tensor:
    """The distribution function of the normal distribution."""
    return paddle.erf(x * math.sqrt(0.5)).scale_(0.5, 0.5)


class _Gelu(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        phi = _phi(x)
        ctx.save_for_backward(x, phi)
        return x * phi

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, phi = ctx.saved_tensor()
        density = (x * x).scale_(-0.5, -0.5 * math.log(2.0 * math.pi)).exp_()
        return density.multiply_(x).add_(phi).multiply_(grad)


class _InputGradient(PyLayer):
    """y itself, where y is a convolution of x that does not give x its gradient; this gives it.

    It is a convolution by the filters turned around. Paddle scatters columns instead, which takes six times as long for
    a depthwise one.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, filters: Tensor, groups: int) -> Tensor:
        ctx.groups = groups
        ctx.save_for_backward(filters)
        return y.reshape(y.shape)  # the same memory; y itself may not be returned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor]:
        (filters,) = ctx.saved_tensor()
        turned = filters.flip([2, 3])
        if ctx.groups == 1:
            turned = turned.transpose([1, 0, 2, 3])
        return grad, F.conv2d(grad, turned, None, 1, filters.shape[2] // 2, 1, ctx.groups)
