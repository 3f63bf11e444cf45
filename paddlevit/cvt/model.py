"""Convolutional vision Transformer (Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.cvt.convert import SOURCES
from paddlevit.errors import UserError, about_keys
from paddlevit.layers import (
    Conv2D,
    DropPath,
    LayerNorm,
    Linear,
    Mlp,
    attention,
    classifier,
    create_parameter,
    drop_path_rates,
    flash_attention,
    for_each_image,
    gelu,
    has_flash_attention,
    init_conv_like_torch_linear_trunc_normal,
    names_by_layer,
)
from paddlevit.views import PIXELS, AttentionView, StageView, Window

NORM_EPS = 1e-5
Activation = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that CvT uses (Hendrycks & Gimpel 2016, section 2)."""
    return x * F.sigmoid(1.702 * x)


@dataclass(frozen=True)
class StageSpec:
    """One stage (table 2). The stochastic-depth rates of its blocks grow linearly from 0 to `drop_path_rate`.

    Raises UserError where the values do not fit together.
    """

    patch_size: int
    patch_stride: int
    patch_padding: int
    dim_embed: int
    num_heads: int
    depth: int
    cls_token: bool = False
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    kernel_qkv: int = 3
    stride_q: int = 1
    padding_q: int = 1
    stride_kv: int = 2
    padding_kv: int = 1
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.dim_embed % self.num_heads:
            raise UserError(f"dim_embed must be a multiple of num_heads {self.num_heads}, got {self.dim_embed}")
        if self.stride_q != 1 or 2 * self.padding_q != self.kernel_qkv - 1:
            raise UserError(
                "stride_q must be 1 and padding_q half of kernel_qkv - 1, for a query from every token, got "
                f"stride_q {self.stride_q}, padding_q {self.padding_q} and kernel_qkv {self.kernel_qkv}"
            )


class ConvTokenEmbedding(nn.Layer):
    """Section 3.1: overlapping patches by a convolution; map [N, C, H, W] -> tokens [N, H' W', dim], H' and W'."""

    def __init__(self, in_channels: int, spec: StageSpec) -> None:
        super().__init__()
        self.proj = Conv2D(in_channels, spec.dim_embed, spec.patch_size, spec.patch_stride, spec.patch_padding)
        self.norm = LayerNorm(spec.dim_embed, epsilon=NORM_EPS)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, int, int]:
        feature_map = self.proj(feature_map)
        height, width = feature_map.shape[2:]
        return self.norm(feature_map.flatten(2).transpose([0, 2, 1])), height, width


def depthwise_projection(dim: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    """The depthwise half of a separable convolution (section 3.2.1); the linear layer that follows is the other."""
    return nn.Sequential(
        Conv2D(dim, dim, kernel, stride, padding, groups=dim, bias_attr=False), nn.BatchNorm2D(dim, epsilon=NORM_EPS)
    )


class ConvAttention(nn.Layer):
    """Self-attention with convolutional projection (section 3.2, equation 2); [N, T + H W, dim] -> the same shape.

    T is 1 with a class token, which stands first and bypasses the convolutions, and 0 without. With `stride_kv` 2 keys
    and values come from a quarter of the places (section 3.2.2). The attention probabilities [N, heads, Lq, Lk] pass
    through `attn_dropout`, where a forward hook can read them.
    """

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        dim = spec.dim_embed
        self.num_heads = spec.num_heads
        # The official code, and the published weights with it, scale by the whole width, not by that of a head.
        self.scale = dim**-0.5
        self.conv_proj_q = depthwise_projection(dim, spec.kernel_qkv, spec.stride_q, spec.padding_q)
        self.conv_proj_k = depthwise_projection(dim, spec.kernel_qkv, spec.stride_kv, spec.padding_kv)
        self.conv_proj_v = depthwise_projection(dim, spec.kernel_qkv, spec.stride_kv, spec.padding_kv)
        # Paddle reads bias_attr=None as "with a bias"; only False leaves it out.
        bias = None if spec.qkv_bias else False
        self.proj_q = Linear(dim, dim, bias_attr=bias)
        self.proj_k = Linear(dim, dim, bias_attr=bias)
        self.proj_v = Linear(dim, dim, bias_attr=bias)
        self.proj = Linear(dim, dim)
        self.attn_dropout = nn.Dropout(spec.attn_drop_rate)
        self.proj_dropout = nn.Dropout(spec.drop_rate)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        n, length, dim = x.shape
        class_token = None
        if length > height * width:
            class_token, x = paddle.split(x, [1, height * width], axis=1)
        feature_map = x.transpose([0, 2, 1]).reshape([-1, dim, height, width])
        q = self._heads(self.conv_proj_q, self.proj_q, feature_map, class_token)
        k = self._heads(self.conv_proj_k, self.proj_k, feature_map, class_token)
        v = self._heads(self.conv_proj_v, self.proj_v, feature_map, class_token)
        if has_flash_attention(q, self.attn_dropout):
            out = flash_attention(q * (self.scale * (dim // self.num_heads) ** 0.5), k, v, self.attn_dropout)
        else:
            q, k, v = (q * self.scale).transpose([0, 2, 1, 3]), k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3])
            out = attention(q, k, v, self.attn_dropout).transpose([0, 2, 1, 3])
        return self.proj_dropout(self.proj(out.reshape([n, length, dim])))

    def _heads(self, conv: nn.Layer, linear: nn.Linear, feature_map: Tensor, class_token: Tensor | None) -> Tensor:
        """Map [N, dim, H, W] and class token [N, 1, dim] -> [N, T + L, heads, dim / heads]."""
        tokens = conv(feature_map).flatten(2).transpose([0, 2, 1])
        if class_token is not None:
            tokens = paddle.concat([class_token, tokens], axis=1)
        length, dim = tokens.shape[1:]
        return linear(tokens).reshape([-1, length, self.num_heads, dim // self.num_heads])


class Block(nn.Layer):
    """Convolutional transformer block (figure 2 b), pre-norm; [N, T + H W, dim] -> the same shape."""

    recomputable = True  # TRAIN.RECOMPUTE

    def __init__(self, spec: StageSpec, drop_path: float, activation: Activation) -> None:
        super().__init__()
        self.norm1 = LayerNorm(spec.dim_embed, epsilon=NORM_EPS)
        self.attn = ConvAttention(spec)
        self.norm2 = LayerNorm(spec.dim_embed, epsilon=NORM_EPS)
        self.mlp = Mlp(spec.dim_embed, spec.mlp_ratio, dropout=spec.drop_rate, activation=activation)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Layer):
    """Token embedding and blocks (figure 2 a); map [N, C, H, W] -> map [N, dim, H', W'] and class token [N, 1, dim].

    Without a class token there is None in its place.
    """

    def __init__(self, in_channels: int, spec: StageSpec, activation: Activation) -> None:
        super().__init__()
        self.spec = spec
        self.cls_token = create_parameter([1, 1, spec.dim_embed]) if spec.cls_token else None
        self.patch_embed = ConvTokenEmbedding(in_channels, spec)
        self.pos_dropout = nn.Dropout(spec.drop_rate)
        rates = drop_path_rates(spec.drop_path_rate, spec.depth)
        self.blocks = nn.LayerList(Block(spec, rate, activation) for rate in rates)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor | None]:
        x, height, width = self.patch_embed(feature_map)
        n, length, dim = x.shape
        if self.cls_token is not None:
            x = paddle.concat([for_each_image(self.cls_token, x), x], axis=1)
        x = self.pos_dropout(x)
        for block in self.blocks:
            x = block(x, height, width)
        class_token = None
        if self.cls_token is not None:
            class_token, x = paddle.split(x, [1, length], axis=1)
        return x.transpose([0, 2, 1]).reshape([n, dim, height, width]), class_token


class CvT(nn.Layer):
    """CvT: stages of transformer blocks with convolutions in place of position embeddings (section 3, table 2).

    The head sees the class token of the last stage or, where that has none, the mean over its tokens; `num_classes` 0
    leaves the head out. The weights fit images of any size. The official `activation` is QuickGELU; weights that
    were trained in transformers need GELU.
    """

    weight_sources: dict = SOURCES
    head_prefixes: tuple[str, ...] = ("head.",)
    no_weight_decay: tuple[str, ...] = ("cls_token",)

    def __init__(
        self,
        in_channels: int = 3,
        *,
        stages: Sequence[StageSpec],
        num_classes: int = 1000,
        activation: Activation = quick_gelu,
    ) -> None:
        super().__init__()
        widths = [spec.dim_embed for spec in stages]
        channels = [in_channels, *widths]
        self.stages = nn.LayerList(Stage(*stage, activation) for stage in zip(channels, stages))
        self.norm = LayerNorm(widths[-1], epsilon=NORM_EPS)
        self.head = classifier(widths[-1], num_classes)
        self.apply(init_conv_like_torch_linear_trunc_normal)

    def forward_features(self, images: Tensor) -> Tensor:
        """What the head sees: the normalised class token, or the mean over the normalised tokens, [N, dim]."""
        feature_map, class_token = images, None
        for stage in self.stages:
            feature_map, class_token = stage(feature_map)
        if class_token is not None:
            return self.norm(class_token.flatten(1))
        return self.norm(feature_map.flatten(2).transpose([0, 2, 1])).mean(axis=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images))

    def layer_groups(self) -> list[list[str]]:
        """Names of the parameters by layer: stem, blocks (the first of a stage has its token embedding), head."""
        layers: list[list[str]] = []
        for i, stage in enumerate(self.stages):
            blocks = [[f"stages.{i}.blocks.{j}"] for j in range(len(stage.blocks))]
            embedding = [f"stages.{i}.patch_embed", f"stages.{i}.cls_token"]
            layers += [[*embedding, *blocks[0]], *blocks[1:]] if i else [embedding, *blocks]
        return names_by_layer(self, [*layers, ["norm", "head"]])

    def views(self) -> list[StageView]:
        """Its stages; attention of the last one only, as the others have large maps and no class token."""
        views, grid = [], PIXELS
        for i, stage in enumerate(self.stages):
            spec = stage.spec
            grid = grid.pooled(Window(spec.patch_size, spec.patch_stride, spec.patch_padding))
            views.append(StageView(f"stage {i + 1}", stage, maps=lambda output: [output[0]], grids=[grid]))
        pooling = Window(spec.kernel_qkv, spec.stride_kv, spec.padding_kv)
        views[-1] = views[-1]._replace(
            attentions=[AttentionView(block.attn.attn_dropout, pooling) for block in stage.blocks],
            num_tokens=int(spec.cls_token),
            read_by_token=stage.blocks[-1].norm1 if spec.cls_token else None,
        )
        return views


def build_cvt(config: CfgNode) -> CvT:
    """The CvT that `config` describes; UserError where a list has not one entry for each stage."""
    model, names = config.MODEL, [field.name for field in fields(StageSpec)]
    for key in map(str.upper, names):
        if len(model[key]) != model.NUM_STAGES:
            raise UserError(
                f"MODEL.{key} must have one entry per stage, MODEL.NUM_STAGES {model.NUM_STAGES}, got {model[key]}"
            )
    with about_keys(model):
        stages = [StageSpec(**{name: model[name.upper()][i] for name in names}) for i in range(model.NUM_STAGES)]
        activation = {"quickgelu": quick_gelu, "gelu": gelu}[model.ACT]
        channels = config.DATA.IMAGE_CHANNELS
        return CvT(channels, stages=stages, num_classes=model.NUM_CLASSES, activation=activation)
