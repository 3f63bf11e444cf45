"""A program for test_parallel.py: evaluate a small PiT, with mirrored images too, alone or as one of several processes.

    python parallel_evaluation.py DATA OUTPUT.json BATCH_SIZE...

The main process writes what `evaluate` returns for every batch size.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import paddle

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.data import build_eval_loader
from paddlevit.data.tta import Averaged
from paddlevit.runtime import process
from paddlevit.training.engine import evaluate


def main(data, output, *batch_sizes):
    process.setup("cpu", 0)
    paddle.seed(1)
    model = build_model(get_config("pit_digits"))
    results = []
    for size in batch_sizes:
        config = get_config("pit_digits", ["DATA.DATA_PATH", data, "DATA.BATCH_SIZE_EVAL", int(size)])
        loader = build_eval_loader(config, rank=process.rank(), world_size=process.world_size())
        results.append(evaluate(Averaged(model, "flip"), loader))
    if process.is_main():
        Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
