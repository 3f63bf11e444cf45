"""Layers and initialisers that families share."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Callable, TypeVar

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.errors import UserError, about_keys
from paddlevit.paddle_internals import conv_options, epsilon, has_hooks, running_statistics
from paddlevit.runtime import kernels
from paddlevit.runtime.kernels import gelu as gelu

T = TypeVar("T", bound=nn.Layer)


@contextlib.contextmanager
def evaluating(model: nn.Layer) -> Iterator[None]:
    """`model` in evaluation; afterwards its layers are as they were."""
    training = [layer for layer in model.sublayers(include_self=True) if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


def learnable(model: nn.Layer) -> dict[str, Tensor]:
    """Parameters by name, frozen or not, without BatchNorm's running statistics, which Paddle counts among them."""
    own = {"_mean", "_variance"}
    return {name: param for name, param in model.named_parameters() if name.rpartition(".")[2] not in own}


def names_by_layer(model: nn.Layer, layers: Sequence[Sequence[str]]) -> list[list[str]]:
    """Names of the learnable parameters in groups: group i has those of the sublayers that `layers[i]` names.

    Groups without parameters are left out.
    """
    layer_of = {sublayer: i for i, sublayers in enumerate(layers) for sublayer in sublayers}
    groups: list[list[str]] = [[] for _ in layers]
    for name in learnable(model):
        sublayer = name
        while sublayer not in layer_of:
            sublayer = sublayer.rpartition(".")[0]
            assert sublayer, f"{type(model).__name__}: {name} belongs to no layer"
        groups[layer_of[sublayer]].append(name)
    return [group for group in groups if group]


def from_config(model: Callable[..., T], config: CfgNode, **keys: str) -> T:
    """A model that takes each argument from the key MODEL.<ARGUMENT>, or from that of `keys`; its UserErrors are about
    these keys.
    """
    arguments = inspect.signature(model).parameters
    keys = {"image_size": "DATA.IMAGE_SIZE", "in_channels": "DATA.IMAGE_CHANNELS", **keys}
    paths = {name: keys.get(name, f"MODEL.{name.upper()}").split(".") for name in arguments}
    with about_keys(config.MODEL, **keys):
        return model(**{name: config[section][key] for name, (section, key) in paths.items()})


def trunc_normal_(param: Tensor, std: float = 0.02) -> None:
    """Fill `param` from a normal distribution truncated at -2 and 2 (absolute values, not multiples of `std`)."""
    nn.initializer.TruncatedNormal(std=std)(param)


def zeros_(param: Tensor) -> None:
    """Fill `param` with zeros."""
    nn.initializer.Constant(0.0)(param)


def init_like_torch(layer: nn.Layer) -> None:
    """Initialise a linear or convolution layer as PyTorch does: U(-k, k), k = 1 / sqrt(fan_in), bias included.

    Paddle's default is Xavier or Kaiming with zero biases; models whose official code relies on PyTorch's default need
    this to be equal in distribution. Other layers are left as they are.
    """
    if isinstance(layer, nn.Linear):
        fan_in = layer.weight.shape[0]
    elif isinstance(layer, nn.Conv2D):
        fan_in = math.prod(layer.weight.shape[1:])
    else:
        return
    uniform = nn.initializer.Uniform(-(fan_in**-0.5), fan_in**-0.5)
    uniform(layer.weight)
    if layer.bias is not None:
        uniform(layer.bias)


def init_conv_like_torch_linear_trunc_normal(layer: nn.Layer) -> None:
    """Initialise as HVT and CvT: linear layers truncated normal, std 0.02, and zero bias; convolutions as PyTorch."""
    if isinstance(layer, nn.Linear):
        trunc_normal_(layer.weight)
        if layer.bias is not None:
            zeros_(layer.bias)
    else:
        init_like_torch(layer)


def patches_along(image_size: int, patch_size: int, stride: int) -> int:
    """How many patches there are along a side of an image. Raises UserError where not even one fits."""
    if image_size < patch_size:
        raise UserError(f"image_size must be at least patch_size {patch_size}, got {image_size}")
    return (image_size - patch_size) // stride + 1


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic-depth rates of `depth` blocks, linear from 0 to `rate` (Huang et al. 2016, section 3)."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class Conv2D(nn.Conv2D):
    """nn.Conv2D with zero padding, its bias added as [out, 1, 1]; [N, in, H, W] -> [N, out, H', W'].

    nn.Conv2D adds [1, out, 1, 1], for which Paddle's CPU kernels take a slow path: with it hrt_tiny takes 1.45 times as
    long in inference and 1.33 times in training (AMD Zen 4). Under AMP the bias is cast to the half precision of the
    product; as float32 it would make float32 of all that follows.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = kernels.conv2d(x, self.weight, *conv_options(self))
        if self.bias is None:
            return y
        bias = self.bias.reshape([-1, 1, 1])
        return kernels.add_bias(y, bias if bias.dtype == y.dtype else bias.astype(y.dtype))


def conv_norm_gelu(conv: Conv2D, norm: nn.BatchNorm2D, x: Tensor) -> Tensor:
    """gelu(norm(conv(x))), of a convolution with a bias; compiled in evaluation, if nothing wants what is between."""
    statistics = (*running_statistics(norm), norm.weight, norm.bias)
    wanted = norm.training or paddle.is_grad_enabled() or has_hooks(conv) or has_hooks(norm)
    if wanted or not kernels.takes(x, conv.bias, *statistics):
        return gelu(norm(conv(x)))
    return kernels.norm_gelu(kernels.conv2d(x, conv.weight, *conv_options(conv)), conv.bias, statistics, epsilon(norm))


class Linear(nn.Linear):
    """nn.Linear, its bias compiled where PADDLEVIT_KERNELS asks for it."""

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)


@paddle.jit.not_to_static
def for_each_image(token: Tensor, images: Tensor) -> Tensor:
    """[1, T, dim] -> [N, T, dim] for `images` [N, ...]; in an exported program N is open, and -1 here."""
    n = images.shape[0]
    return token.expand([n if n >= 0 else paddle.shape(images)[0], -1, -1])


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last axis, compiled where PADDLEVIT_KERNELS asks for it."""

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__(dim, epsilon)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return kernels.layer_norm(x, self.weight, self.bias, self.epsilon)


class DropPath(nn.Layer):
    """Stochastic depth: in training, drop a residual branch per sample and scale the kept ones by 1 / (1 - rate)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = paddle.bernoulli(paddle.full([x.shape[0]] + [1] * (x.ndim - 1), keep, dtype=x.dtype))
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Mlp(nn.Layer):
    """Two linear layers with an activation between them, the first `mlp_ratio` times as wide; [..., dim] -> [..., dim].

    Raises UserError where that leaves no channel.
    """

    def __init__(
        self, dim: int, mlp_ratio: float, *, dropout: float = 0.0, activation: Callable[[Tensor], Tensor] = gelu
    ) -> None:
        super().__init__()
        hidden_dim = int(dim * mlp_ratio)
        if hidden_dim < 1:
            raise UserError(f"mlp_ratio must be at least 1/{dim} for a width of {dim}, got {mlp_ratio:g}")
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.activation(self.fc1(x)))
        return self.dropout(self.fc2(x))


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Dropout, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T + bias) v (Vaswani et al. 2017, equation 1); q [N, heads, Lq, d], scaled already -> the same shape.

    The probabilities [N, heads, Lq, Lk] pass through `dropout`, where a forward hook can read them.
    """
    scores = paddle.matmul(q, k, transpose_y=True)
    return paddle.matmul(dropout(kernels.softmax(scores if bias is None else kernels.add_bias(scores, bias))), v)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Dropout) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by Paddle's fused kernel, which keeps no probabilities; [N, L, heads, d] -> same."""
    # Paddle 3.0 to 3.2 ignore `training` without a mask: they would drop in evaluation too.
    dropout_p = dropout.p if dropout.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, training=dropout.training)


def has_flash_attention(x: Tensor, dropout: nn.Dropout) -> bool:
    """Whether to use `flash_attention`: half precision, a GPU that has it, and no hook that reads the probabilities."""
    half = x.dtype in (paddle.float16, paddle.bfloat16)
    return half and not has_hooks(dropout) and runs_flash_attention(paddle.device.get_device())


@functools.cache
def runs_flash_attention(device: str) -> bool:
    """Whether `device` ("gpu:0") has compute capability 8.0, which the kernel needs.

    Paddle 3.0 to 3.2 choose the kernel unchecked, and it raises on V100, T4 and RTX 20.
    """
    return device.startswith("gpu") and paddle.device.cuda.get_device_capability(device) >= (8, 0)


class Attention(nn.Layer):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2); [N, L, dim] -> [N, L, dim].

    The attention probabilities [N, heads, L, L] pass through `attn_dropout`, where a forward hook can read them; a hook
    also turns off the fused kernel of GPUs, which keeps none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"dim must be a multiple of num_heads {num_heads}, got {dim}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        # Paddle reads bias_attr=None as "with a bias"; only False leaves it out.
        self.qkv = Linear(dim, 3 * dim, bias_attr=None if qkv_bias else False)
        self.proj = Linear(dim, dim)
        self.attn_dropout = nn.Dropout(attention_dropout)
        self.proj_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        qkv = self.qkv(x).reshape([n, length, 3, self.num_heads, dim // self.num_heads])
        if has_flash_attention(qkv, self.attn_dropout):
            q, k, v = qkv.unbind(2)
            out = flash_attention(q, k, v, self.attn_dropout)
        else:
            # One transpose, then three contiguous tensors: slices of qkv cost twice as much in the backward pass.
            q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)
            out = attention(q * self.scale, k, v, self.attn_dropout).transpose([0, 2, 1, 3])
        return self.proj_dropout(self.proj(out.reshape([n, length, dim])))


class Block(nn.Layer):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)); [N, L, dim] -> [N, L, dim]."""

    recomputable = True  # TRAIN.RECOMPUTE

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, attention_dropout=attention_dropout, dropout=dropout)
        self.norm2 = LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, mlp_ratio, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WideLinear(nn.Linear):
    """A linear layer that sums its products in 16 parts; [N, in_features] -> [N, out_features].

    For a few rows a CPU's matrix product adds thousands of terms one after the other, and float32 rounding grows to
    several times that of a large batch. The parts keep it near that of the rest of the model. Elsewhere, and in half
    precision, where each part would be rounded by itself, it is nn.Linear.
    """

    def forward(self, x: Tensor) -> Tensor:
        exact = x.dtype in (paddle.float32, paddle.float64)
        if not (exact and paddle.in_dynamic_mode() and x.place.is_cpu_place()):
            return F.linear(x, self.weight, self.bias)
        parts = math.gcd(16, self.weight.shape[0])
        products = zip(x.chunk(parts, axis=-1), self.weight.chunk(parts, axis=0))
        return sum((F.linear(features, weight) for features, weight in products), self.bias)


def classifier(in_features: int, num_classes: int) -> nn.Layer:
    """The linear head, or the identity for `num_classes` 0 (features instead of logits)."""
    return nn.Linear(in_features, num_classes) if num_classes > 0 else nn.Identity()


def create_parameter(shape: list[int]) -> Tensor:
    """A trainable tensor of the default dtype, filled by `trunc_normal_`."""
    param = paddle.create_parameter(shape, dtype=paddle.get_default_dtype())
    trunc_normal_(param)
    return param
