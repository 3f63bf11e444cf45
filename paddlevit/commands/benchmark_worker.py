"""A process of the benchmark: builds one kind of network, then runs a step for every line on standard input."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

Step = Callable[[], Any]
# A measurement lasts at least this long, so that a small network's steps are many.
SECONDS = 0.2


def main() -> None:
    """Answer every line on standard input with {"seconds": of a step, "memory_mib": the peak so far}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = json.loads(sys.argv[1])
    from paddlevit.runtime import settings

    settings.prepare_command()
    from paddlevit.runtime.process import peak_memory

    clock = process_clock(spec)
    step = build(spec)
    step()
    began = clock()
    step()
    repeats = max(1, round(SECONDS / max(clock() - began, 1e-6)))
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        began = clock()
        for _ in range(repeats):
            step()
        seconds = (clock() - began) / repeats
        print(json.dumps({"seconds": seconds, "memory_mib": peak_memory()}), file=answers, flush=True)


def process_clock(spec: dict[str, Any]) -> Callable[[], float]:
    """Seconds: on one thread those of this process alone, so that others on the machine do not count."""
    import paddle

    if spec["device"] == "gpu":

        def synchronised() -> float:
            paddle.device.synchronize()
            return time.perf_counter()

        return synchronised
    return time.process_time if spec["threads"] == 1 else time.perf_counter


def build(spec: dict[str, Any]) -> Step:
    """The step of spec["kind"], ready to be called."""
    import paddle

    paddle.set_device(spec["device"])
    paddle.seed(0)
    if spec["kind"] == "peak":
        return _peak()
    if spec["kind"] == "base":
        from paddlevit.commands.benchmark_base import be_plain

        be_plain()
    from paddlevit.config import get_config
    from paddlevit.models import build_model

    config = get_config(spec["cfg"], spec["opts"])
    model = build_model(config)
    size = config.DATA.IMAGE_SIZE
    images = paddle.randn([spec["batch_size"], config.DATA.IMAGE_CHANNELS, size, size])
    if spec["kind"] == "static":
        model = paddle.jit.to_static(model, full_graph=True)
    if spec["train"]:
        return _training(model, images, config.MODEL.NUM_CLASSES, spec["amp"])
    model.eval()
    if spec["kind"] in ("paddle", "base", "static"):
        return _inference(model, images, spec["amp"])
    return _exported(model, images.numpy(), spec)


def _peak() -> Step:
    import paddle

    a, b = paddle.randn([1024, 1024]), paddle.randn([1024, 1024])
    return lambda: paddle.matmul(a, b)


def _inference(model: Any, images: Any, amp: bool) -> Step:
    import paddle

    def step() -> None:
        with paddle.no_grad(), paddle.amp.auto_cast(enable=amp):
            model(images)

    return step


def _exported(model: Any, images: Any, spec: dict[str, Any]) -> Step:
    from paddlevit.export import export, open_exported

    fmt = "paddle" if spec["kind"] == "program" else spec["kind"]
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, images.shape[1:], fmt, Path(folder))
        predict = open_exported(path, threads=spec["threads"], device=spec["device"])
        predict(images)  # some read their files only now
    return lambda: predict(images)


def _training(model: Any, images: Any, num_classes: int, amp: bool) -> Step:
    import paddle
    import paddle.nn.functional as F

    labels = paddle.randint(0, num_classes, [images.shape[0]])
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters(), weight_decay=0.05)
    scaler = paddle.amp.GradScaler(enable=amp)  # noqa: TID251 - as users write it
    model.train()

    def step() -> None:
        with paddle.amp.auto_cast(enable=amp):
            logits = model(images)
            loss = sum(F.cross_entropy(each, labels) for each in (logits if isinstance(logits, tuple) else (logits,)))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()

    return step


if __name__ == "__main__":
    main()
