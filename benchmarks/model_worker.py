"""A process of models.py: builds one kind of model, then answers every line on standard input with a measurement."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from paddlevit.commands.benchmark import Step, by_turns, inference_step, training_step


def main() -> None:
    """Answer with {"seconds": of a step, "memory_mib": the peak so far}, or with the shares of a profile."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = json.loads(sys.argv[1])
    from paddlevit.runtime import settings

    settings.prepare_command()
    from paddlevit.runtime.process import peak_memory

    # On one thread the time of this process alone: others on the machine do not count.
    clock = time.process_time if spec["threads"] == 1 else time.perf_counter
    step = build(spec)
    step()
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        if spec.get("profile"):
            from benchmarks.operators import shares

            answer: dict[str, Any] = {"shares": shares(step)}
        else:
            answer = {"seconds": by_turns({0: step}, 1, clock)[0][0], "memory_mib": peak_memory()}
        print(json.dumps(answer), file=answers, flush=True)


def build(spec: dict[str, Any]) -> Step:
    """The step of spec["kind"], ready to be called."""
    import paddle

    kind = spec["kind"]
    paddle.set_device("cpu")
    paddle.seed(0)
    if kind == "peak":
        a, b = paddle.randn([1024, 1024]), paddle.randn([1024, 1024])
        return lambda: paddle.matmul(a, b)
    if kind == "base":
        from benchmarks.plain import be_plain

        be_plain()
    from paddlevit.config import get_config
    from paddlevit.models import build_model

    config = get_config(spec["cfg"], spec["opts"])
    model = build_model(config)
    size = config.DATA.IMAGE_SIZE
    images = paddle.randn([spec["batch_size"], config.DATA.IMAGE_CHANNELS, size, size])
    if kind == "static":
        model = paddle.jit.to_static(model, full_graph=True)
    if spec["train"]:
        return training_step(model, images, config.MODEL.NUM_CLASSES)
    engine = "paddle" if kind in ("base", "compiled", "static") else kind
    return inference_step(engine, model, images, threads=spec["threads"])


if __name__ == "__main__":
    main()
