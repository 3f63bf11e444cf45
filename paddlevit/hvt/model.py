"""Hierarchical Vision Transformer (Pan et al., "Scalable Vision Transformers with Hierarchical Pooling", ICCV 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.errors import UserError
from paddlevit.hvt.convert import SOURCES
from paddlevit.layers import (
    Block,
    Conv2D,
    LayerNorm,
    classifier,
    create_parameter,
    drop_path_rates,
    from_config,
    init_conv_like_torch_linear_trunc_normal,
    names_by_layer,
    patches_along,
)
from paddlevit.views import PIXELS, AttentionView, StageView, Window, spread_back


class PooledBlock(Block):
    """A transformer block that ends with hierarchical pooling (section 3.2, equation 5); [N, L, dim] -> [N, L', dim].

    Max pooling along the tokens without padding, L' = (L - kernel) // stride + 1, then a position embedding of its own.
    """

    def __init__(self, dim: int, num_heads: int, *, kernel: int, stride: int, pooled_length: int, **block: Any) -> None:
        super().__init__(dim, num_heads, **block)
        self.kernel = kernel
        self.stride = stride
        self.pos_embed = create_parameter([1, pooled_length, dim])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        x = F.max_pool1d(x.transpose([0, 2, 1]), self.kernel, self.stride).transpose([0, 2, 1])
        return x + self.pos_embed


class HVT(nn.Layer):
    """HVT: transformer blocks that shorten the sequence as a CNN shrinks its maps (section 3.2, figure 2).

    Every `pool_block_width`-th block, starting with the first, ends with a pooling; 0 pools nowhere. There is no class
    token: the head sees the mean over the tokens (section 3.3). `num_classes` 0 leaves the head out. Raises UserError
    where the arguments do not fit together.
    """

    weight_sources: dict = SOURCES
    head_prefixes: tuple[str, ...] = ("head.",)
    no_weight_decay: tuple[str, ...] = ("pos_embed",)

    def __init__(
        self,
        image_size: int = 224,
        in_channels: int = 3,
        *,
        num_classes: int = 1000,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pool_kernel_size: int = 3,
        pool_stride: int = 2,
        pool_block_width: int = 12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        length = patches_along(image_size, patch_size, patch_size) ** 2
        self.patch_embed = nn.Sequential(("proj", Conv2D(in_channels, embed_dim, patch_size, patch_size)))
        self.pos_embed = create_parameter([1, length, embed_dim])
        self.pos_dropout = nn.Dropout(dropout)
        self.layers = nn.LayerList()
        for i, rate in enumerate(drop_path_rates(drop_path, depth)):
            block: dict[str, Any] = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "drop_path": rate}
            block.update(dropout=dropout, attention_dropout=attention_dropout)
            if pool_block_width == 0 or i % pool_block_width:
                self.layers.append(Block(embed_dim, num_heads, **block))
                continue
            length = _pooled_length(length, pool_kernel_size, pool_stride, block=i)
            pool = {"kernel": pool_kernel_size, "stride": pool_stride, "pooled_length": length}
            self.layers.append(PooledBlock(embed_dim, num_heads, **pool, **block))
        self.norm = LayerNorm(embed_dim, epsilon=1e-6)
        self.head = classifier(embed_dim, num_classes)
        self.apply(init_conv_like_torch_linear_trunc_normal)

    def forward_features(self, images: Tensor) -> Tensor:
        """What the head sees: the mean over the normalised tokens [N, embed_dim]."""
        x = self.patch_embed(images).flatten(2).transpose([0, 2, 1])
        x = self.pos_dropout(x + self.pos_embed)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(axis=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images))

    def layer_groups(self) -> list[list[str]]:
        """Names of the parameters by layer: stem, blocks, head."""
        blocks = [[f"layers.{i}"] for i in range(len(self.layers))]
        return names_by_layer(self, [["patch_embed", "pos_embed"], *blocks, ["norm", "head"]])

    def views(self) -> list[StageView]:
        """Its blocks. Pooled tokens are spread back over the patches that they come from, so that they form maps."""
        views = []
        patch_size = self.patch_embed[0].weight.shape[2]
        grid = PIXELS.pooled(Window(patch_size, patch_size, 0))
        shares = np.eye(self.pos_embed.shape[1], dtype="float32")  # of the patches in the tokens
        for i, block in enumerate(self.layers):
            pooling = None
            if isinstance(block, PooledBlock):
                pooling = Window(block.kernel, block.stride, 0).shares([len(shares)])
                shares = pooling @ shares
            views.append(
                StageView(
                    f"block {i + 1}",
                    block,
                    maps=lambda output: [output.transpose([0, 2, 1])],
                    grids=[grid],
                    attentions=[AttentionView(block.attn.attn_dropout)],
                    pooling=pooling,
                    spread=spread_back(shares),
                )
            )
        return views


def _pooled_length(length: int, kernel: int, stride: int, *, block: int) -> int:
    if length < kernel:
        raise UserError(
            f"pool_kernel_size must be at most {length}, the tokens in block {block}, got {kernel}; or use a larger "
            "image_size or pool_block_width"
        )
    return (length - kernel) // stride + 1


def build_hvt(config: CfgNode) -> HVT:
    """The HVT that `config` describes."""
    return from_config(HVT, config, drop_path="MODEL.DROPPATH", dim="MODEL.EMBED_DIM")
