"""The baseline of models.py: the same models written straightforwardly, on Paddle as it is."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddlevit import layers


def be_plain() -> None:
    """Make this process build models of plain operations, with PaddleViT's way to compute attention."""
    layers.Attention.forward = _attention  # type: ignore[method-assign]
    layers.Conv2D.forward = nn.Conv2D.forward  # type: ignore[method-assign]


def _attention(self: layers.Attention, x: Tensor) -> Tensor:
    n, length, dim = x.shape
    qkv = self.qkv(x).reshape([n, length, 3, self.num_heads, dim // self.num_heads]).transpose([2, 0, 3, 1, 4])
    q, k, v = qkv[0], qkv[1], qkv[2]
    scores = paddle.matmul(q, k, transpose_y=True) * self.scale
    probs = self.attn_dropout(F.softmax(scores, axis=-1))
    out = paddle.matmul(probs, v).transpose([0, 2, 1, 3]).reshape([n, length, dim])
    return self.proj_dropout(self.proj(out))
