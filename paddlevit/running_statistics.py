"""BatchNorm's running statistics, kept finite."""

from typing import List

import paddle
from paddle import Tensor, nn


class RunningStatistics:
    """Remembers the running means and variances of a network, for when images or weights made them infinite or NaN.

    A forward pass changes them at once: unlike weights, they can not be spared by leaving out an optimizer step.
    """

    def __init__(self, model: nn.Layer) -> None:
        layers = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, nn.BatchNorm2D)]
        self._tensors: List[Tensor] = [tensor for layer in layers for tensor in (layer._mean, layer._variance)]
        self.remember()

    @paddle.no_grad()
    def remember(self) -> None:
        """Take the present values for good."""
        self._good = [tensor.clone() for tensor in self._tensors]

    @paddle.no_grad()
    def mend(self) -> None:
        """Put back the remembered value where one is not finite."""
        for tensor, good in zip(self._tensors, self._good):
            tensor.set_value(paddle.where(paddle.isfinite(tensor), tensor, good))
