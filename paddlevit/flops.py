"""Parameters, and multiply-accumulates of one image."""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Iterator
from typing import Any, Callable

import paddle
from paddle import Tensor, nn

from paddlevit.layers import evaluating, learnable
from paddlevit.paddle_internals import conv_options
from paddlevit.runtime import kernels

_OUTSIDE = "(outside)"  # of all parts


def count(model: nn.Layer, image_size: int) -> dict[str, Any]:
    """{"params", "macs", "attention_macs", "parts"} for one square image of `image_size` pixels.

    Multiply-accumulates are counted in convolutions, linear layers and matrix products, those of attention included
    (query with key, probabilities with value); not in norms, activations, softmax, pooling and biases. A matrix product
    must be a call of `paddle.matmul`; the operator @ is not counted. "parts" has params and macs by stage or layer, in
    order.
    """
    counter = _Counter()
    removers = [
        layer.register_forward_post_hook(counter.layer)
        for layer in model.sublayers(include_self=True)
        if isinstance(layer, (nn.Conv2D, nn.Linear))
    ]
    # After those, as a part may be such a layer itself.
    removers += [hook for name, part in _parts(model) for hook in counter.follow(name, part)]
    try:
        with evaluating(model), counter.listening(), kernels.left_alone(), paddle.no_grad():
            model(paddle.zeros([1, _channels(model), image_size, image_size], dtype=paddle.get_default_dtype()))
    finally:
        for remover in removers:
            remover.remove()
    params = parameters(model)
    inside = {name: parameters(part) for name, part in _parts(model)}
    sizes = {_OUTSIDE: params - sum(inside.values()), **inside}
    parts = {name: {"params": size, "macs": counter.macs[name]} for name, size in sizes.items()}
    parts = {name: part for name, part in parts.items() if any(part.values())}
    macs = sum(counter.macs.values())
    return {"params": params, "macs": macs, "attention_macs": counter.attention_macs, "parts": parts}


def parameters(model: nn.Layer) -> int:
    """Number of learnable parameters."""
    return sum(math.prod(param.shape) for param in learnable(model).values())


class _Counter:
    def __init__(self) -> None:
        self.macs: collections.Counter[str] = collections.Counter()  # by part
        self.attention_macs = 0
        self._inside = [_OUTSIDE]

    def follow(self, name: str, part: nn.Layer) -> tuple[Any, Any]:
        """Count what is computed while `part` runs under `name`; returns the hooks, to be removed."""
        enter = part.register_forward_pre_hook(lambda layer, inputs: self._inside.append(name))
        leave = part.register_forward_post_hook(lambda layer, inputs, output: self._inside.pop() and None)
        return enter, leave

    def layer(self, layer: nn.Layer, inputs: Any, output: Tensor) -> None:
        """Count a convolution [out, in / groups, height, width] or a linear layer [in, out]."""
        shape = layer.weight.shape
        self.macs[self._inside[-1]] += output.size * (
            shape[0] if isinstance(layer, nn.Linear) else math.prod(shape[1:])
        )

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count products of two activations, which are those of attention."""

        def matmul(x: Tensor, y: Tensor, *args: Any, **options: Any) -> Tensor:
            output = real_matmul(x, y, *args, **options)
            transposed = options.get("transpose_x", args[0] if args else False)
            macs = output.size * x.shape[-2 if transposed else -1]
            self.macs[self._inside[-1]] += macs
            self.attention_macs += macs
            return output

        real_matmul: Callable = paddle.matmul
        paddle.matmul = matmul
        try:
            yield
        finally:
            paddle.matmul = real_matmul


def _parts(model: nn.Layer) -> list[tuple[str, nn.Layer]]:
    """The children of `model`, with lists and sequences of layers expanded."""
    parts = []
    for name, child in model.named_children():
        if isinstance(child, (nn.LayerList, nn.Sequential)):
            parts += [(f"{name}.{inner}", layer) for inner, layer in child.named_children()]
        else:
            parts.append((name, child))
    return parts


def _channels(model: nn.Layer) -> int:
    first = next((layer for layer in model.sublayers() if isinstance(layer, nn.Conv2D)), None)
    return 3 if first is None else first.weight.shape[1] * conv_options(first)[-1]
