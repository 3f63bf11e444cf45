"""What a model's time goes into, by kind of operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

STEPS = 3

# Operators by what they do, forward and backward alike; what is not here counts as elementwise.
GROUPS = {
    "products": ("matmul", "addmm", "conv2d", "depthwise_conv2d", "conv2d_transpose", "linear_v2"),
    "softmax": ("softmax",),
    "norms": ("layer_norm", "batch_norm"),
    "layout": (
        *("transpose", "concat", "split", "split_with_num", "unbind", "stack", "unstack", "slice", "strided_slice"),
        *("pad", "pad3d", "flip", "assign", "expand", "tile", "gather", "nearest_interp", "set_value"),
    ),
}
KERNEL = " kernel launch"


def group_of(operator: str) -> str:
    """The group that an operator's time counts to; 'matmul_grad' is in that of 'matmul'."""
    name = operator.rstrip("_")
    name = name[: -len("_grad")] if name.endswith("_grad") else name
    return next((group for group, members in GROUPS.items() if name in members), "elementwise")


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """Per group its share of a step, which is warm; "rest" is what no operator is at work in: Python and dispatch."""
    import paddle.profiler as profiler

    profile = profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None)
    profile.start()
    with profiler.RecordEvent("whole"):
        for _ in range(STEPS):
            step()
    profile.stop()
    seconds = dict.fromkeys((*GROUPS, "elementwise"), 0.0)
    whole = 0.0
    for name, nanoseconds in _events(profile.profiler_result.get_data()):
        if name == "whole":
            whole = nanoseconds
        elif name.endswith(KERNEL):
            seconds[group_of(name[: -len(KERNEL)])] += nanoseconds
    result = {group: value / whole for group, value in seconds.items()}
    return {**result, "rest": 1.0 - sum(result.values())}


def _events(threads: dict[int, Any]) -> Iterator[tuple[str, int]]:
    """Names and nanoseconds of all that was recorded, in every thread."""
    waiting = list(threads.values())
    while waiting:
        node = waiting.pop()
        yield node.name, node.end_ns - node.start_ns
        waiting.extend(node.children_node)
