"""A network of some 300 numbers, a trainer and batches for it; a folder of images; and what a script runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image

from paddlevit.config import get_config
from paddlevit.data.mixup import SmoothTargets
from paddlevit.training.ema import ModelEma
from paddlevit.training.engine import Trainer
from paddlevit.training.objectives import Supervised
from paddlevit.training.optim import build_optimizer

ROOT = Path(__file__).resolve().parents[1]


def but_slow(names, *slow):
    """`names` for parametrize, of which the models `slow` are left to the whole suite."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def network():
    paddle.seed(1)
    return nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.GELU(), nn.Flatten(), nn.Linear(4 * 4, 3))


def trainer_of(model, **options):
    return Trainer(
        model=model,
        objective=Supervised(),
        mixup=SmoothTargets(3, 0.1),
        optimizer=build_optimizer(get_config("pit_ti_224"), model),
        lr_at=lambda epoch: 0.01,
        steps_per_epoch=100,
        ema=ModelEma(model, decay=0.9),
        **options,
    )


def batch(seed, bad=None):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((4, 3, 4, 4)).astype("float32")
    if bad is not None:
        images[2, 1, 0, 3] = bad
    return paddle.to_tensor(images), paddle.to_tensor(rng.integers(0, 3, 4))


def arrays(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def image_folder(folder, classes, **counts):
    """`folder` with noise of 32 x 32 pixels for each split: folder/train/0/0.png, folder/train/1/1.png, ..."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            path = folder / split / str(i % classes) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def what_a_script_runs(words, tmp_path, folder=ROOT):
    """The command line that a script of run_scripts/ comes to, by a `python` that only prints its arguments."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["sh", *words], cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout.splitlines()
