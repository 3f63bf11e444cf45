"""Pooling-based Vision Transformer (Heo et al., "Rethinking Spatial Dimensions of Vision Transformers", ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.errors import UserError
from paddlevit.layers import (
    Block,
    Conv2D,
    LayerNorm,
    Linear,
    classifier,
    create_parameter,
    for_each_image,
    from_config,
    init_like_torch,
    names_by_layer,
    patches_along,
)
from paddlevit.pit.convert import SOURCES
from paddlevit.views import PIXELS, AttentionView, StageView, Window


class Pooling(nn.Layer):
    """Section 3.2, figure 4: a depthwise convolution halves the map and widens it, a linear layer widens the tokens."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = Conv2D(dim, out_dim, kernel_size=3, stride=2, padding=1, groups=dim)
        self.fc = Linear(dim, out_dim)

    def forward(self, feature_map: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(feature_map), self.fc(tokens)


class Transformer(nn.Layer):
    """The blocks between two poolings; map [N, dim, P, P] and tokens [N, T, dim] -> the same shapes."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.LayerList(blocks)

    def forward(self, feature_map: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        shape, num_tokens = feature_map.shape, tokens.shape[1]
        x = paddle.concat([tokens, feature_map.flatten(2).transpose([0, 2, 1])], axis=1)
        for block in self.blocks:
            x = block(x)
        tokens, x = paddle.split(x, [num_tokens, x.shape[1] - num_tokens], axis=1)
        return x.transpose([0, 2, 1]).reshape(shape), tokens


class PiT(nn.Layer):
    """PiT: three stages of transformer blocks with pooling between them (section 3.2, table 1).

    `base_dims` are the widths of a head and `num_heads` their numbers, so stage i is base_dims[i] * num_heads[i] wide.
    With `distilled` there is a second token and head (Touvron et al. 2021, section 4): in training the model returns
    both logits, in evaluation their mean. `num_classes` 0 leaves the heads out. Raises UserError where the arguments do
    not fit together.
    """

    weight_sources: dict = SOURCES
    head_prefixes: tuple[str, ...] = ("head.", "head_dist.")
    no_weight_decay: tuple[str, ...] = ("pos_embed", "cls_token")

    def __init__(
        self,
        image_size: int = 224,
        in_channels: int = 3,
        *,
        num_classes: int = 1000,
        patch_size: int = 16,
        stride: int = 8,
        base_dims: Sequence[int] = (48, 48, 48),
        depth: Sequence[int] = (2, 6, 4),
        num_heads: Sequence[int] = (3, 6, 12),
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        dims = _widths(base_dims, depth, num_heads)
        # Block i has rate * i / total, so the rate itself is never reached: the official schedule.
        rates = iter([drop_path * i / sum(depth) for i in range(sum(depth))])
        block: dict[str, Any] = {"mlp_ratio": mlp_ratio, "dropout": dropout, "attention_dropout": attention_dropout}
        side = patches_along(image_size, patch_size, stride)
        self.distilled = distilled
        self.patch_window = Window(patch_size, stride, padding=0)
        self.patch_embed = nn.Sequential(("conv", Conv2D(in_channels, dims[0], patch_size, stride)))  # they overlap
        self.pos_embed = create_parameter([1, dims[0], side, side])
        self.cls_token = create_parameter([1, 2 if distilled else 1, dims[0]])
        self.pos_dropout = nn.Dropout(dropout)
        self.transformers = nn.LayerList(
            Transformer([Block(dim, heads, drop_path=next(rates), **block) for _ in range(blocks)])
            for dim, heads, blocks in zip(dims, num_heads, depth)
        )
        self.pools = nn.LayerList(Pooling(dim, out_dim) for dim, out_dim in zip(dims[:-1], dims[1:]))
        self.norm = LayerNorm(dims[-1], epsilon=1e-6)
        self.head = classifier(dims[-1], num_classes)
        if distilled:
            self.head_dist = classifier(dims[-1], num_classes)
        self.apply(init_like_torch)

    def forward_features(self, images: Tensor) -> Tensor:
        """What the heads see: the normalised class token [N, D], or class and distillation tokens [N, 2, D]."""
        feature_map = self.pos_dropout(self.patch_embed(images) + self.pos_embed)
        tokens = for_each_image(self.cls_token, feature_map)
        feature_map, tokens = self.transformers[0](feature_map, tokens)
        for pool, transformer in zip(self.pools, self.transformers[1:]):
            feature_map, tokens = transformer(*pool(feature_map, tokens))
        tokens = self.norm(tokens)
        return tokens if self.distilled else tokens[:, 0]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.forward_features(images)
        if not self.distilled:
            return self.head(features)
        logits, distill_logits = self.head(features[:, 0]), self.head_dist(features[:, 1])
        return (logits, distill_logits) if self.training else (logits + distill_logits) / 2

    def layer_groups(self) -> list[list[str]]:
        """Names of the parameters by layer: stem, blocks (a pooling belongs to the one after it), heads."""
        layers = [["patch_embed", "pos_embed", "cls_token"]]
        for i, transformer in enumerate(self.transformers):
            blocks = [[f"transformers.{i}.blocks.{j}"] for j in range(len(transformer.blocks))]
            blocks[0].append(f"pools.{i - 1}")
            layers += blocks
        return names_by_layer(self, [*layers, ["norm", "head", "head_dist"]])

    def views(self) -> list[StageView]:
        """Its stages; the class token, and with `distilled` a second one, comes first in all of them."""
        views = []
        halved = Window(kernel=3, stride=2, padding=1)
        grid = PIXELS.pooled(self.patch_window)
        for i, transformer in enumerate(self.transformers):
            views.append(
                StageView(
                    f"stage {i + 1}",
                    transformer,
                    maps=lambda output: [output[0]],
                    grids=[grid],
                    attentions=[AttentionView(block.attn.attn_dropout) for block in transformer.blocks],
                    num_tokens=self.cls_token.shape[1],
                    pooling=halved if i < len(self.pools) else None,
                )
            )
            grid = grid.pooled(halved)
        return [*views[:-1], views[-1]._replace(read_by_token=self.transformers[-1].blocks[-1].norm1)]


def _widths(base_dims: Sequence[int], depth: Sequence[int], num_heads: Sequence[int]) -> list[int]:
    """The width of each stage, base_dims x num_heads. Raises UserError where the lists do not fit together."""
    if not len(base_dims) == len(depth) == len(num_heads):
        raise UserError(
            "base_dims, depth and num_heads must be lists of equal length, one entry per stage, got "
            f"{list(base_dims)}, {list(depth)} and {list(num_heads)}"
        )
    dims = [base * heads for base, heads in zip(base_dims, num_heads)]
    if any(wide % narrow for narrow, wide in zip(dims, dims[1:])):
        raise UserError(
            f"the width of each stage, base_dims x num_heads, must be a multiple of the previous one, got {dims}"
        )
    return dims


def build_pit(config: CfgNode) -> PiT:
    """The PiT that `config` describes."""
    return from_config(PiT, config, drop_path="MODEL.DROPPATH")
