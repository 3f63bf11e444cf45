"""Convolutional vision Transformer (Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit import kernels
from paddlevit.cvt.convert import SOURCES
from paddlevit.errors import UserError
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
    has_flash_attention,
    init_conv_like_torch_linear_trunc_normal,
    names_by_layer,
)
from paddlevit.views import PIXELS, AttentionView, StageView, Window

NORM_EPS = 1e-5


class ConvTokenEmbedding(nn.Layer):
    """Section 3.1: overlapping patches by a convolution; map [N, C, H, W] -> tokens [N, H' W', dim], H' and W'."""

    def __init__(self, in_channels: int, dim: int, *, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = Conv2D(in_channels, dim, kernel, stride, padding)
        self.norm = LayerNorm(dim, epsilon=NORM_EPS)

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
    through `attn_dropout`, where a forward hook can take them out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        kernel_qkv: int,
        stride_q: int,
        padding_q: int,
        stride_kv: int,
        padding_kv: int,
        drop_rate: float,
        attn_drop_rate: float,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"MODEL.DIM_EMBED {dim} of CvT is not a multiple of its MODEL.NUM_HEADS {num_heads}")
        if stride_q != 1 or 2 * padding_q != kernel_qkv - 1:
            raise UserError(
                f"MODEL.KERNEL_QKV {kernel_qkv}, MODEL.STRIDE_Q {stride_q} and MODEL.PADDING_Q {padding_q} of CvT give "
                "another number of queries than tokens, allowed: stride 1, an odd kernel and padding (kernel - 1) / 2"
            )
        self.num_heads = num_heads
        self.padding = padding_q
        self.stride_kv = stride_kv
        # The official code, and the published weights with it, scale by the whole width, not by that of a head.
        self.scale = dim**-0.5
        self.conv_proj_q = depthwise_projection(dim, kernel_qkv, stride_q, padding_q)
        self.conv_proj_k = depthwise_projection(dim, kernel_qkv, stride_kv, padding_kv)
        self.conv_proj_v = depthwise_projection(dim, kernel_qkv, stride_kv, padding_kv)
        # Paddle reads bias_attr=None as "with a bias"; only False leaves it out.
        bias = None if qkv_bias else False
        self.proj_q = Linear(dim, dim, bias_attr=bias)
        self.proj_k = Linear(dim, dim, bias_attr=bias)
        self.proj_v = Linear(dim, dim, bias_attr=bias)
        self.proj = Linear(dim, dim)
        self.attn_dropout = nn.Dropout(attn_drop_rate)
        self.proj_dropout = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        n, length, dim = x.shape
        class_token = None
        if length > height * width:
            class_token, x = paddle.split(x, [1, height * width], axis=1)
        project = self._project_side_by_side if n > 1 and kernels.on_cpu(x) else self._project
        q, k, v = project(x, height, width)
        q = self._heads(self.proj_q, q, class_token)
        k = self._heads(self.proj_k, k, class_token)
        v = self._heads(self.proj_v, v, class_token)
        if has_flash_attention(q, self.attn_dropout):
            out = flash_attention(q * (self.scale * (dim // self.num_heads) ** 0.5), k, v, self.attn_dropout)
        else:
            q, k, v = (q * self.scale).transpose([0, 2, 1, 3]), k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3])
            out = attention(q, k, v, self.attn_dropout).transpose([0, 2, 1, 3])
        return self.proj_dropout(self.proj(out.reshape([n, length, dim])))

    def _heads(self, linear: Linear, tokens: Tensor, class_token: Tensor | None) -> Tensor:
        """Tokens [N, L, dim] and class token [N, 1, dim] -> [N, T + L, heads, dim / heads]."""
        if class_token is not None:
            tokens = paddle.concat([class_token, tokens], axis=1)
        length, dim = tokens.shape[1:]
        return linear(tokens).reshape([-1, length, self.num_heads, dim // self.num_heads])

    def _project(self, tokens: Tensor, height: int, width: int) -> list[Tensor]:
        """Tokens [N, H W, dim] through the convolutions of q, k and v; each [N, H' W', dim]."""
        feature_map = tokens.transpose([0, 2, 1]).reshape([-1, tokens.shape[2], height, width])
        return [
            conv(feature_map).flatten(2).transpose([0, 2, 1])
            for conv in (self.conv_proj_q, self.conv_proj_k, self.conv_proj_v)
        ]

    def _project_side_by_side(self, tokens: Tensor, height: int, width: int) -> list[Tensor]:
        """The same with all images in one map [1, dim, H, N (W + gap)], zeros in the gaps.

        A CPU's kernel works on one channel of one image at a time, which is little for it at 14 x 14 places.
        """
        n, _, dim = tokens.shape
        gap = self.padding + -(width + self.padding) % self.stride_kv
        feature_map = tokens.reshape([n, height, width, dim]).transpose([3, 1, 0, 2])
        zeros = paddle.zeros([dim, height, n, gap], dtype=tokens.dtype)
        row = paddle.concat([feature_map, zeros], axis=3).reshape([1, dim, height, n * (width + gap)])
        projected = []
        for conv, norm in (self.conv_proj_q, self.conv_proj_k, self.conv_proj_v):
            stride = conv._stride[0]
            new_width = -(-width // stride)
            y = conv(row)
            y = y.reshape([dim, y.shape[2], n, (width + gap) // stride])[..., :new_width]
            y = norm(y.flatten(2).unsqueeze(0)).reshape(y.shape)
            projected.append(y.transpose([2, 1, 3, 0]).flatten(1, 2))
        return projected


class Block(nn.Layer):
    """Convolutional transformer block (figure 2 b), pre-norm; [N, T + H W, dim] -> the same shape."""

    recomputable = True  # TRAIN.RECOMPUTE

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: float, drop_rate: float, drop_path_rate: float, **attention: Any
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, epsilon=NORM_EPS)
        self.attn = ConvAttention(dim, num_heads, drop_rate=drop_rate, **attention)
        self.norm2 = LayerNorm(dim, epsilon=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout=drop_rate, activation=kernels.quick_gelu)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Layer):
    """Token embedding and blocks (figure 2 a); map [N, C, H, W] -> map [N, dim, H', W'] and class token [N, 1, dim].

    Without a class token there is None in its place. The stochastic-depth rates of the blocks grow linearly from 0 to
    `drop_path_rate`.
    """

    def __init__(
        self,
        in_channels: int,
        dim_embed: int,
        *,
        patch_size: int,
        patch_stride: int,
        patch_padding: int,
        depth: int,
        cls_token: bool,
        drop_rate: float,
        drop_path_rate: float,
        **block: Any,
    ) -> None:
        super().__init__()
        self.cls_token = create_parameter([1, 1, dim_embed]) if cls_token else None
        self.patch_embed = ConvTokenEmbedding(
            in_channels, dim_embed, kernel=patch_size, stride=patch_stride, padding=patch_padding
        )
        self.pos_dropout = nn.Dropout(drop_rate)
        self.blocks = nn.LayerList(
            Block(dim_embed, drop_rate=drop_rate, drop_path_rate=rate, **block)
            for rate in drop_path_rates(drop_path_rate, depth)
        )

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor | None]:
        x, height, width = self.patch_embed(feature_map)
        n, length, dim = x.shape
        if self.cls_token is not None:
            x = paddle.concat([self.cls_token.expand([n, -1, -1]), x], axis=1)
        x = self.pos_dropout(x)
        for block in self.blocks:
            x = block(x, height, width)
        class_token = None
        if self.cls_token is not None:
            class_token, x = paddle.split(x, [1, length], axis=1)
        return x.transpose([0, 2, 1]).reshape([n, dim, height, width]), class_token


class CvT(nn.Layer):
    """CvT: stages of transformer blocks with convolutions in place of position embeddings (section 3, table 2).

    Arguments that are sequences have one entry per stage. The head sees the class token of the last stage or, where
    that has none, the mean over its tokens; `num_classes` 0 leaves the head out. The weights fit images of any size.
    Raises UserError where the entries do not fit together.
    """

    weight_sources: dict = SOURCES
    head_prefixes: tuple[str, ...] = ("head.",)
    no_weight_decay: tuple[str, ...] = ("cls_token",)

    def __init__(
        self,
        in_channels: int = 3,
        *,
        num_classes: int = 1000,
        num_stages: int = 3,
        patch_size: Sequence[int] = (7, 3, 3),
        patch_stride: Sequence[int] = (4, 2, 2),
        patch_padding: Sequence[int] = (2, 1, 1),
        dim_embed: Sequence[int] = (64, 192, 384),
        num_heads: Sequence[int] = (1, 3, 6),
        depth: Sequence[int] = (1, 2, 10),
        mlp_ratio: Sequence[float] = (4.0, 4.0, 4.0),
        qkv_bias: Sequence[bool] = (True, True, True),
        kernel_qkv: Sequence[int] = (3, 3, 3),
        stride_q: Sequence[int] = (1, 1, 1),
        padding_q: Sequence[int] = (1, 1, 1),
        stride_kv: Sequence[int] = (2, 2, 2),
        padding_kv: Sequence[int] = (1, 1, 1),
        cls_token: Sequence[bool] = (False, False, True),
        drop_rate: Sequence[float] = (0.0, 0.0, 0.0),
        attn_drop_rate: Sequence[float] = (0.0, 0.0, 0.0),
        drop_path_rate: Sequence[float] = (0.0, 0.0, 0.1),
    ) -> None:
        super().__init__()
        stages = _per_stage(
            num_stages,
            patch_size=patch_size,
            patch_stride=patch_stride,
            patch_padding=patch_padding,
            dim_embed=dim_embed,
            num_heads=num_heads,
            depth=depth,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            kernel_qkv=kernel_qkv,
            stride_q=stride_q,
            padding_q=padding_q,
            stride_kv=stride_kv,
            padding_kv=padding_kv,
            cls_token=cls_token,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.stages = nn.LayerList(Stage(c, **stage) for c, stage in zip([in_channels, *dim_embed], stages))
        self.norm = LayerNorm(dim_embed[-1], epsilon=NORM_EPS)
        self.head = classifier(dim_embed[-1], num_classes)
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
        """Its stages. The maps of the first ones are large, and there is no class token yet: attention of the last."""
        last = self.stages[-1]
        views, grid = [], PIXELS
        for i, stage in enumerate(self.stages):
            conv = stage.patch_embed.proj
            grid = grid.pooled(_pooling(conv))
            views.append(StageView(f"stage {i + 1}", stage, maps=lambda output: [output[0]], grids=[grid]))
        attentions = [
            AttentionView(block.attn.attn_dropout, _pooling(block.attn.conv_proj_v[0])) for block in last.blocks
        ]
        with_token = last.cls_token is not None
        views[-1] = views[-1]._replace(
            attentions=attentions,
            num_tokens=int(with_token),
            read_by_token=last.blocks[-1].norm1 if with_token else None,
        )
        return views


def _pooling(conv: Conv2D) -> Window:
    return Window(conv.weight.shape[2], conv._stride[0], conv._padding)


def _per_stage(num_stages: int, **sequences: Sequence) -> list[dict[str, Any]]:
    """The keyword arguments of every Stage; UserError where a sequence has not one entry for each."""
    for name, values in sequences.items():
        if len(values) != num_stages:
            raise UserError(
                f"MODEL.{name.upper()} of CvT is {list(values)}, which has {len(values)} entries; "
                f"allowed: one per stage, MODEL.NUM_STAGES is {num_stages}"
            )
    return [{name: values[i] for name, values in sequences.items()} for i in range(num_stages)]


def build_cvt(config: CfgNode) -> CvT:
    """The CvT that `config` describes."""
    model = config.MODEL
    return CvT(
        config.DATA.IMAGE_CHANNELS,
        num_classes=model.NUM_CLASSES,
        num_stages=model.NUM_STAGES,
        patch_size=model.PATCH_SIZE,
        patch_stride=model.PATCH_STRIDE,
        patch_padding=model.PATCH_PADDING,
        dim_embed=model.DIM_EMBED,
        num_heads=model.NUM_HEADS,
        depth=model.DEPTH,
        mlp_ratio=model.MLP_RATIO,
        qkv_bias=model.QKV_BIAS,
        kernel_qkv=model.KERNEL_QKV,
        stride_q=model.STRIDE_Q,
        padding_q=model.PADDING_Q,
        stride_kv=model.STRIDE_KV,
        padding_kv=model.PADDING_KV,
        cls_token=model.CLS_TOKEN,
        drop_rate=model.DROP_RATE,
        attn_drop_rate=model.ATTN_DROP_RATE,
        drop_path_rate=model.DROP_PATH_RATE,
    )
