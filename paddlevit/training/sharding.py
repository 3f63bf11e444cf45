"""The optimizer's state sharded over the processes that train together."""

from __future__ import annotations

from typing import Any

import paddle.distributed as dist
from paddle import Tensor

from paddlevit.errors import UserError
from paddlevit.runtime.process import is_main, rank, world_size


def owners(sizes: dict[str, int], processes: int) -> dict[str, int]:
    """Which process each parameter belongs to, given their sizes: the largest first, each to the least loaded."""
    loads = [0] * processes
    result = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        result[name] = loads.index(min(loads))
        loads[result[name]] += sizes[name]
    return result


class Shards:
    """Every process keeps the optimizer's state of its own `params` only, steps them, and sends them to the others.

    ZeRO stage 1 (Rajbhandari et al. 2020, section 5.1), over whole parameters: gradients are summed everywhere, as
    without it, and the numbers are the same. Without `params` nothing is sharded.
    """

    def __init__(self, params: dict[str, Tensor] | None = None) -> None:
        self._params = params or {}
        if self._params and len(self._params) < world_size():
            raise UserError(
                f"TRAIN.SHARD_OPTIMIZER: {len(self._params)} trainable tensors cannot be sharded over {world_size()} "
                "processes: set it to False"
            )
        self._owners = owners({name: param.size for name, param in self._params.items()}, world_size())

    def __bool__(self) -> bool:
        return bool(self._params)

    def steps(self, name: str) -> bool:
        """Whether this process steps the parameter."""
        return self._owners.get(name, rank()) == rank()

    def broadcast(self) -> None:
        """Send every parameter from its owner to the others."""
        for task in [dist.broadcast(self._params[name], src, sync_op=False) for name, src in self._owners.items()]:
            task.wait()

    def gather(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The `arrays` of all processes, which call this together, on the main one; those of one process at a time."""
        if not self:
            return arrays
        merged: dict[str, Any] = {}
        for source in range(world_size()):
            box: list[Any] = [arrays if source == rank() else None]
            dist.broadcast_object_list(box, src=source)
            if is_main():
                merged.update(box[0])
        return merged
