"""BatchNorm's running statistics: kept finite, and the same on all processes."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from paddlevit.paddle_internals import running_statistics, uses_running_statistics
from paddlevit.runtime.process import all_reduce_sum, world_size


class RunningStatistics:
    """The running means and variances of a network that training changes."""

    def __init__(self, model: nn.Layer) -> None:
        layers = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, nn.BatchNorm2D)]
        self._tensors: list[Tensor] = [
            tensor for layer in layers if not uses_running_statistics(layer) for tensor in running_statistics(layer)
        ]
        self.remember()

    @paddle.no_grad()
    def remember(self) -> None:
        """Take the present values for good."""
        self._good = [tensor.clone() for tensor in self._tensors]

    @paddle.no_grad()
    def mend(self) -> None:
        """Put back the remembered value where one is not finite.

        A forward pass changes the statistics at once: unlike weights, they cannot be spared by leaving out a step.
        """
        for tensor, good in zip(self._tensors, self._good):
            tensor.set_value(paddle.where(paddle.isfinite(tensor), tensor, good))

    @paddle.no_grad()
    def average(self) -> None:
        """Give all processes, which call this together, the mean of theirs: each has seen other images.

        Doing so more often changes nothing but rounding, since the statistics are sums weighted by age alone.
        """
        if world_size() == 1 or not self._tensors:
            return
        flat = all_reduce_sum(paddle.concat([tensor.flatten() for tensor in self._tensors])) / world_size()
        parts = paddle.split(flat, [tensor.size for tensor in self._tensors])
        for tensor, part in zip(self._tensors, parts):
            tensor.set_value(part.reshape(tensor.shape))
