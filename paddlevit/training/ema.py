"""Exponential moving average of a model's weights (Polyak & Juditsky 1992)."""

from __future__ import annotations

import copy

import paddle
from paddle import Tensor, nn


class ModelEma:
    """A second copy of `model` in float32 whose weights follow it: e <- d e + (1 - d) w after every optimizer step.

    With `warmup`, d is (1 + steps) / (10 + steps) while that is smaller than `decay`: a short run would end near its
    random start. BatchNorm's running statistics are averaged too where they are finite; integer buffers are copied.
    """

    def __init__(self, model: nn.Layer, *, decay: float, warmup: bool = True) -> None:
        self.model = copy.deepcopy(model)
        self.model.eval()
        self.decay = decay
        self.warmup = warmup
        for tensor in self.model.state_dict().values():
            tensor.stop_gradient = True
        self._pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))

    @paddle.no_grad()
    def update(self, steps: int, exact: dict[str, Tensor] | None = None) -> None:
        """Follow the model after its optimizer step number `steps`, counted from 1.

        `exact`: by Tensor.name, float32 copies of weights that the model has in half precision.
        """
        decay = min(self.decay, (1 + steps) / (10 + steps)) if self.warmup else self.decay
        exact = exact or {}
        for average, value in self._pairs:
            if not average.is_floating_point():
                average.set_value(value)
                continue
            is_statistic = value.stop_gradient
            value = exact.get(value.name, value).astype(average.dtype)
            if is_statistic:
                value = paddle.where(paddle.isfinite(value), value, average)
            average.lerp_(value, 1.0 - decay)  # unlike two products, leaves a weight alone that stays the same
