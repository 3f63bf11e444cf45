"""Operations that are faster on a CPU than Paddle's own, forward or backward, and equal in value.

Elsewhere (on a GPU, in a static program, in half precision) each is the plain operation. Paddle's CPU kernels are fast
at arithmetic; they lose time with sums over rows, biases, and scattering in the gradient of a convolution.

With `training`, if all inputs require gradients, an operation is a PyLayer. A PyLayer supports `Tensor.backward` and
`paddle.grad` of all inputs, but not `paddle.grad` of some of them. Grad-CAM needs the latter, of models in evaluation,
which use Paddle's own operations.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from paddlevit.paddle_internals import (
    conv_options,
    has_hooks,
    momentum_and_epsilon,
    running_statistics,
    uses_running_statistics,
)

# Below this many elements the calls cost more than they save.
FEW = 2**16
# Paddle computes a depthwise convolution image by image and channel by channel. For maps of up to this many places that
# is too little work at a time: all images go into one product.
TINY_MAP = 2**6
# Attention scores up to here have exponentials that are safe to sum and to divide by.
LARGE = 30.0


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, training: bool) -> Tensor:
    """x @ weight + bias; [..., in] -> [..., out]. The bias rides along in the matrix product, in both directions."""
    if not on_cpu(x):
        return F.linear(x, weight, bias)
    rows = x.reshape([-1, x.shape[-1]])
    if training and _want_gradients(x, weight, bias):
        y = _Linear.apply(rows, weight, bias)
    elif paddle.is_grad_enabled():
        y = F.linear(rows, weight, bias)  # the gradient of addmm crashes if some inputs are frozen
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
    return _Gelu.apply(x, math.sqrt(0.5)) if _want_gradients(x) else _phi(x, math.sqrt(0.5)).multiply_(x)


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
    filters = layer.weight
    stride, padding, dilation, groups, _ = conv_options(layer)
    options = (stride, padding, dilation, groups)
    if not on_cpu(x):
        return F.conv2d(x, filters, None, *options)
    if _narrows(layer):
        # As its transpose: Paddle then folds the narrow products, where it would have unfolded the wide map.
        turned = filters.flip([2, 3]).transpose([1, 0, 2, 3])
        return F.conv2d_transpose(x, turned, None, padding=padding)
    tiny = math.prod(x.shape[2:]) <= TINY_MAP
    if tiny and x.shape[0] >= 4 and _is_depthwise(layer) and _keeps_size(layer):
        return _products_per_channel(x, filters)
    if not (layer.training and _is_reversible(layer) and _want_gradients(x, filters)):
        return F.conv2d(x, filters, None, *options)
    # Two paths for the gradient: Paddle's kernel gives that of the filters, _InputGradient that of the input.
    y = F.conv2d(x.detach(), filters, None, *options)
    return _InputGradient.apply(y, x, filters.detach(), groups)


def conv_norm_gelu(x: Tensor, layer: nn.Conv2D, norm: nn.BatchNorm2D) -> Tensor:
    """gelu(norm(layer(x))); on a CPU without a pass for the bias, unless hooks read what `layer` returns.

    In training the bias changes the running mean alone, and its gradient is zero. In evaluation it is subtracted from
    the running mean.
    """
    watched = has_hooks(layer) or has_hooks(norm)
    plain = layer.bias is None or watched or uses_running_statistics(norm) or not on_cpu(x)
    # Paddle does not normalise a channel of a single value.
    if plain or x.size == x.shape[1] or (paddle.is_grad_enabled() and not norm.training):
        return gelu(norm(layer(x)))
    running_mean, variance = running_statistics(norm)
    momentum, epsilon = momentum_and_epsilon(norm)
    mean, bias = running_mean.clone(), layer.bias
    # The factor sqrt(1/2) inside gelu's error function becomes part of the normalisation.
    weight, shift = norm.weight * math.sqrt(0.5), norm.bias * math.sqrt(0.5)
    if norm.training:
        shift = shift + 0.0 * bias
    else:
        mean = mean - bias
    y = conv2d(x, layer)
    y = F.batch_norm(y, mean, variance, weight, shift, norm.training, momentum, epsilon)
    if norm.training:
        new = 1.0 - float(np.float32(momentum))  # Paddle's kernel has it in this precision
        with paddle.no_grad():
            running_mean.set_value(mean + new * bias)
    return _Gelu.apply(y, 1.0) if _want_gradients(y) else _phi(y, 1.0).multiply_(y)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, training: bool) -> Tensor:
    """softmax(q k^T + bias) v (Vaswani et al. 2017, equation 1); [N, heads, L, d], `bias` [heads, L, L] -> as q."""
    if on_cpu(q) and training and _want_gradients(q, k, v, bias):
        return _Attention.apply(q, k, v, bias)
    scores = paddle.matmul(q, k, transpose_y=True) + bias
    if not on_cpu(q) or paddle.is_grad_enabled():
        return paddle.matmul(F.softmax(scores), v)
    weights, total = _exponentials(scores)
    return paddle.matmul(weights, v) / total


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """y [N, C, H, W] plus bias [C], in the precision of y.

    Under AMP a convolution gives half precision. Paddle would add a bias in float32 to it, and all that follows would
    be in float32 as well.
    """
    bias = bias.reshape([-1, 1, 1])
    return y + (bias if bias.dtype == y.dtype else bias.astype(y.dtype))


def on_cpu(x: Tensor) -> bool:
    """Whether `x` is on a CPU, in full precision, outside a static program, and not empty."""
    if not paddle.in_dynamic_mode():
        return False
    return x.place.is_cpu_place() and x.dtype in (paddle.float32, paddle.float64) and x.size > 0


def _want_gradients(*tensors: Tensor) -> bool:
    """Whether all of `tensors` require gradients."""
    return paddle.is_grad_enabled() and not any(tensor.stop_gradient for tensor in tensors)


def _is_depthwise(layer: nn.Conv2D) -> bool:
    """Whether every channel has exactly one filter of its own."""
    out, per_group = layer.weight.shape[:2]
    return per_group == 1 and out == conv_options(layer).groups


def _keeps_size(layer: nn.Conv2D) -> bool:
    """Whether the output map has the size of the input map, and the kernel is odd and square."""
    _, _, height, width = layer.weight.shape
    stride, padding, dilation, _, padding_mode = conv_options(layer)
    same = height == width > 1 and height % 2 == 1 and padding in (height // 2, [height // 2] * 2)
    return same and stride in (1, [1, 1]) and dilation in (1, [1, 1]) and padding_mode == "zeros"


def _is_reversible(layer: nn.Conv2D) -> bool:
    """Whether the input's gradient is a convolution like `layer`: same size, in one group or depthwise."""
    return _keeps_size(layer) and (conv_options(layer).groups == 1 or _is_depthwise(layer))


def _narrows(layer: nn.Conv2D) -> bool:
    """Whether output channels times kernel area are fewer than input channels: a wide map becomes a narrow one."""
    out, channels, height, width = layer.weight.shape
    return _keeps_size(layer) and conv_options(layer).groups == 1 and out * height * width < channels


@functools.cache
def _taps(height: int, width: int, kernel: int) -> np.ndarray:
    """1 where a filter's tap leads from a place of a map to one of the result, [kernel^2, places * places]."""
    taps = np.zeros([kernel, kernel, height, width, height, width])
    for i, j, y, x in np.ndindex(kernel, kernel, height, width):
        row, column = y + i - kernel // 2, x + j - kernel // 2
        if 0 <= row < height and 0 <= column < width:
            taps[i, j, row, column, y, x] = 1
    return taps.reshape([kernel**2, -1])


def _products_per_channel(x: Tensor, filters: Tensor) -> Tensor:
    """A depthwise convolution that keeps the map's size, as a matrix [places, places] for each channel."""
    n, channels, height, width = x.shape
    taps = paddle.to_tensor(_taps(height, width, filters.shape[2]), dtype=x.dtype)
    matrices = (filters.reshape([channels, -1]) @ taps).reshape([channels, height * width, -1])
    y = x.transpose([1, 0, 2, 3]).reshape([channels, n, -1]) @ matrices
    return y.reshape([channels, n, height, width]).transpose([1, 0, 2, 3])


def _exponentials(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Weights proportional to softmax(scores), and their sums over the last axis, which stays with size 1.

    They are exp(scores) where that is far from the limits of float32: Paddle's softmax takes over three times as long.
    """
    largest = max(scores.max().item(), -scores.min().item())
    weights = paddle.exp(scores) if largest < LARGE else F.softmax(scores)
    return weights, weights @ paddle.ones([scores.shape[-1], 1], dtype=scores.dtype)


def _sum_rows(x: Tensor) -> Tensor:
    """[rows, columns] -> [columns]; as a matrix product it is several times as fast as a sum."""
    return paddle.matmul(paddle.ones([1, x.shape[0]], dtype=x.dtype), x).reshape([-1])


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return paddle.addmm(bias, x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
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


def _phi(x: Tensor, scale: float) -> Tensor:
    """gelu(y) / x for y = sqrt(2) * scale * x, which is y / x times the normal distribution function at y."""
    half = math.sqrt(0.5) * scale
    z = x if scale == 1.0 else x * scale
    return paddle.erf(z).scale_(half, half)


class _Gelu(PyLayer):
    """gelu(sqrt(2) * scale * x). The slope is computed in the forward pass, while x is in the processor's cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        phi = _phi(x, scale)
        density = (x * x).scale_(-(scale**2), math.log(2.0 * math.sqrt(0.5 / math.pi) * scale**2)).exp_()
        ctx.save_for_backward(density.multiply_(x).add_(phi))
        return phi.multiply_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensor()
        return slope * grad


class _InputGradient(PyLayer):
    """Returns `y`, a convolution of `x` that was detached from it, and gives `x` its gradient.

    That gradient is a convolution with the flipped filters. Paddle scatters columns instead, which takes six times as
    long for a depthwise convolution.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, filters: Tensor, groups: int) -> Tensor:
        ctx.groups = groups
        ctx.save_for_backward(filters)
        return y.reshape(y.shape)  # the same memory; y itself may not be returned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (filters,) = ctx.saved_tensor()
        turned = filters.flip([2, 3])
        if ctx.groups == 1:
            turned = turned.transpose([1, 0, 2, 3])
        return grad, F.conv2d(grad, turned, None, 1, filters.shape[2] // 2, 1, ctx.groups)


class _Attention(PyLayer):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        weights, total = _exponentials(paddle.matmul(q, k, transpose_y=True).add_(bias))
        out = paddle.matmul(weights, v) / total
        ctx.save_for_backward(q, k, v, weights, total, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, weights, total, out = ctx.saved_tensor()
        grad = grad / total
        by_value = paddle.matmul(weights, grad, transpose_x=True)
        by_scores = paddle.matmul(grad, v, transpose_y=True)
        by_scores.subtract_((grad * out).sum(-1, keepdim=True)).multiply_(weights)
        by_bias = _sum_rows(by_scores.flatten(1)).reshape(weights.shape[1:])
        return paddle.matmul(by_scores, k), paddle.matmul(by_scores, q, transpose_x=True), by_value, by_bias
