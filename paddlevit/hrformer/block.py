"""Block of HRFormer (section 3): self-attention in windows, then a feed-forward network with a convolution."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddlevit.hrformer.convert import relative_position_index
from paddlevit.layers import Conv2D, DropPath, LayerNorm, Linear, attention, conv_norm_gelu, create_parameter


def window_padding(size: int, window: int) -> tuple[int, int]:
    """Zeros before and after `size` places that make it a multiple of `window`; the odd one comes after."""
    missing = -size % window
    return missing // 2, missing - missing // 2


def split_windows(feature_map: Tensor, window: int) -> Tensor:
    """Map [N, C, H, W] -> tokens [N, windows, window^2, C]; zero padding where the window does not divide the map."""
    channels, height, width = feature_map.shape[1:]
    padding = [*window_padding(width, window), *window_padding(height, window)]
    if any(padding):
        feature_map = F.pad(feature_map, padding)
        height, width = feature_map.shape[2:]
    # One transpose moves the channels last and cuts out the windows: the partition costs no copy of its own.
    grid = feature_map.reshape([-1, channels, height // window, window, width // window, window])
    return grid.transpose([0, 2, 4, 3, 5, 1]).reshape([-1, height * width // window**2, window**2, channels])


def join_windows(tokens: Tensor, height: int, width: int, window: int) -> Tensor:
    """Tokens [N, windows, window^2, C] -> map [N, C, height, width], without the padding of `split_windows`."""
    channels = tokens.shape[-1]
    rows, columns = -(-height // window), -(-width // window)
    grid = tokens.reshape([-1, rows, columns, window, window, channels]).transpose([0, 5, 1, 3, 2, 4])
    feature_map = grid.reshape([-1, channels, rows * window, columns * window])
    if height % window or width % window:
        top, left = window_padding(height, window)[0], window_padding(width, window)[0]
        return feature_map[:, :, top : top + height, left : left + width]
    return feature_map


class RelativeAttention(nn.Layer):
    """Local-window self-attention (section 3, figure 1 a) with a bias for each relative position, that of Swin (Liu et
    al. 2021, section 3.2); [N, windows, window^2, dim] -> the same shape.

    The attention probabilities [N * windows, heads, window^2, window^2] pass through `attn_dropout`, where a forward
    hook can read them. Padding is zero between normalisation and projections (`inside` makes it so) and is not masked
    in the softmax: its keys and values are the biases of their projections. The official code for dense prediction does
    the same; its classification code fails at sizes that need padding.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.length = window**2
        self.scale = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = create_parameter([(2 * window - 1) ** 2, num_heads])
        self._number_positions()
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.q_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        self.attn_dropout = nn.Dropout(0.0)

    def _number_positions(self) -> None:
        place = self.relative_position_bias_table.place
        index = paddle.to_tensor(relative_position_index(self.relative_position_bias_table.shape).ravel(), place=place)
        self.register_buffer("relative_position_index", index, persistable=False)

    def position_bias(self) -> Tensor:
        """[heads, window^2, window^2]."""
        if self.relative_position_index.dtype != paddle.int64:
            self._number_positions()  # Layer.to(dtype=...) casts whole numbers too, in bfloat16 to others
        bias = paddle.gather(self.relative_position_bias_table, self.relative_position_index)
        return bias.transpose([1, 0]).reshape([self.num_heads, self.length, self.length])

    def forward(self, tokens: Tensor, inside: Tensor | None = None) -> Tensor:
        if inside is not None:
            tokens = tokens * inside
        x = tokens.flatten(0, 1)
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        out = attention(q * self.scale, k, v, self.attn_dropout, self.position_bias())
        return self.out_proj(out.transpose([0, 2, 1, 3]).reshape(x.shape)).reshape([-1, *tokens.shape[1:]])

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, dim] -> [B, heads, L, dim / heads]."""
        return x.reshape([-1, self.length, self.num_heads, x.shape[-1] // self.num_heads]).transpose([0, 2, 1, 3])


class ConvMlp(nn.Layer):
    """Feed-forward network with a 3 x 3 depthwise convolution (section 3, figure 1 b); [N, dim, H, W] -> same.

    GELU follows every batch normalisation, the last one too.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Conv2D(dim, hidden_dim, 1)
        self.norm1 = nn.BatchNorm2D(hidden_dim)
        self.dw3x3 = Conv2D(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.norm2 = nn.BatchNorm2D(hidden_dim)
        self.fc2 = Conv2D(hidden_dim, dim, 1)
        self.norm3 = nn.BatchNorm2D(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_norm_gelu(self.fc1, self.norm1, x)
        x = conv_norm_gelu(self.dw3x3, self.norm2, x)
        return conv_norm_gelu(self.fc2, self.norm3, x)


class Block(nn.Layer):
    """HRFormer block (figure 1), pre-norm: window attention, then the feed-forward network; [N, dim, H, W] -> same."""

    recomputable = True  # TRAIN.RECOMPUTE

    def __init__(self, dim: int, num_heads: int, *, window: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.attn = nn.Sequential(("attn", RelativeAttention(dim, num_heads, window)))
        self.norm1 = LayerNorm(dim, epsilon=1e-6)
        self.norm2 = LayerNorm(dim, epsilon=1e-6)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        # Tokens stay in their windows until the convolutions: norms and residuals do not care where a token is.
        tokens = split_windows(x, self.window)
        normed = self.norm1(tokens)
        inside = None
        if height % self.window or width % self.window:  # 1 at the tokens of the map, 0 at those of the padding
            inside = split_windows(paddle.ones([1, 1, height, width], dtype=normed.dtype), self.window)[0]
        tokens = tokens + self.drop_path(self.attn.attn(normed, inside))
        normed = join_windows(self.norm2(tokens), height, width, self.window)
        return join_windows(tokens, height, width, self.window) + self.drop_path(self.mlp(normed))
