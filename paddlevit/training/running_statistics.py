"""BatchNorm's running statistics: kept finite, and the same on all processes."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from paddlevit.paddle_internals import running_statistics, uses_running_statistics
from paddlevit.runtime.process import all_reduce_sum, world_size


class RunningStatistics:
    """The running means and variances of models that training changes."""

    def __init__(self, models: Sequence[nn.Layer]) -> None:
        layers = [layer for model in models for layer in model.sublayers(include_self=True)]
        self._tensors: list[Tensor] = [
            tensor
            for layer in layers
            if isinstance(layer, nn.BatchNorm2D) and not uses_running_statistics(layer)
            for tensor in running_statistics(layer)
        ]
        self.keep()

    @paddle.no_grad()
    def keep(self) -> None:
        """Keep a copy of the present values, which are finite."""
        self._finite = [tensor.clone() for tensor in self._tensors]

    @paddle.no_grad()
    def mend(self) -> None:
        """Put back what was kept where a value is not finite: skipping a step spares weights, but a forward pass has
        changed the statistics by then.
        """
        for tensor, finite in zip(self._tensors, self._finite):
            tensor.set_value(paddle.where(paddle.isfinite(tensor), tensor, finite))

    @paddle.no_grad()
    def settle(self) -> None:
        """Mend them and give all processes, which call this together, the mean of theirs: each has seen other images.

        Doing so more often changes nothing but rounding, since the statistics are sums weighted by age alone.
        """
        self.mend()
        if world_size() == 1 or not self._tensors:
            return
        flat = all_reduce_sum(paddle.concat([tensor.flatten() for tensor in self._tensors])) / world_size()
        for tensor, part in zip(self._tensors, paddle.split(flat, [tensor.size for tensor in self._tensors])):
            tensor.set_value(part.reshape(tensor.shape))
