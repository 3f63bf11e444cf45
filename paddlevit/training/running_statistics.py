"""BatchNorm's running statistics: kept finite, and the same on all processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import paddle
from paddle import Tensor, nn

from paddlevit.layers import evaluating
from paddlevit.paddle_internals import momentum, running_statistics, set_momentum, uses_running_statistics
from paddlevit.runtime.process import all_reduce_sum, world_size


def changing_norms(model: nn.Layer) -> list[nn.BatchNorm2D]:
    """The layers whose running statistics training changes."""
    norms = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, nn.BatchNorm2D)]
    return [norm for norm in norms if not uses_running_statistics(norm)]


@contextlib.contextmanager
def restored_momenta(norms: Sequence[nn.BatchNorm2D]) -> Iterator[None]:
    """In the end, each of `norms` has the momentum that it had."""
    momenta = [momentum(norm) for norm in norms]
    try:
        yield
    finally:
        for norm, before in zip(norms, momenta):
            set_momentum(norm, before)


@paddle.no_grad()
def estimate(model: nn.Layer, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make the running statistics of `model` the mean of those of `batches`; all else is as in evaluation."""
    norms = changing_norms(model)
    with evaluating(model), restored_momenta(norms):
        for norm in norms:
            norm.training = True
        for seen, (images, _) in enumerate(batches):
            for norm in norms:
                set_momentum(norm, seen / (seen + 1))
            model(images)
        for norm in norms:
            norm.training = False


class RunningStatistics:
    """The running means and variances of models that training changes."""

    def __init__(self, models: Sequence[nn.Layer]) -> None:
        norms = [norm for model in models for norm in changing_norms(model)]
        self._tensors: list[Tensor] = [tensor for norm in norms for tensor in running_statistics(norm)]
        self.snapshot()

    @paddle.no_grad()
    def snapshot(self) -> None:
        """Copy the present values, which are finite."""
        self._finite = [tensor.clone() for tensor in self._tensors]

    @paddle.no_grad()
    def restore_nonfinite(self) -> None:
        """Restore values that are not finite from the snapshot: a skipped step spares the weights, but its forward pass
        has changed the statistics by then.
        """
        for tensor, finite in zip(self._tensors, self._finite):
            tensor.set_value(paddle.where(paddle.isfinite(tensor), tensor, finite))

    @paddle.no_grad()
    def synchronize(self) -> None:
        """Average the finite statistics over all processes, which call this together: each has seen other images.

        Doing so more often changes nothing but rounding, since the statistics are sums weighted by age alone.
        """
        self.restore_nonfinite()
        if world_size() == 1 or not self._tensors:
            return
        flat = all_reduce_sum(paddle.concat([tensor.flatten() for tensor in self._tensors])) / world_size()
        for tensor, part in zip(self._tensors, paddle.split(flat, [tensor.size for tensor in self._tensors])):
            tensor.set_value(part.reshape(tensor.shape))
