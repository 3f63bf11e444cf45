"""A program for test_parallel.py and ../runtime/test_fake_device.py: 8 optimizer steps of a small PiT in float64, alone
or as one of several processes.

    python parallel_steps.py DEVICE FOLDER CASE...

A case is <images per batch>x<batches per step>[s][r]: with s the optimizer's state is sharded, with r blocks keep no
activations. FOLDER/<rank>.npz gets, for every case, the losses of the steps, the weights after them, and the bytes of
the optimizer's state on this process; a BatchNorm's running means before and after the end of an epoch; and what
`evaluate` returns, with mirrored images too, for FOLDER/val in batches of 1, 7 and 64.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
from paddle import nn

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.data import build_eval_loader
from paddlevit.data.mixup import SmoothTargets
from paddlevit.data.tta import Averaged
from paddlevit.runtime import process
from paddlevit.training.ema import ModelEma
from paddlevit.training.engine import Trainer, evaluate
from paddlevit.training.objectives import Supervised
from paddlevit.training.optim import Shards, build_optimizer, optimizer_arrays
from paddlevit.training.recompute import recompute_blocks

STEPS, IMAGES = 8, 32
CONFIG = get_config("pit_digits", ["MODEL.DROPPATH", 0.0, "DATA.IMAGE_SIZE", 16, "MODEL.NUM_CLASSES", 10])


def trainer_of(accum_iter, sharded, recomputed):
    paddle.seed(5)
    model = build_model(CONFIG)
    if recomputed:
        recompute_blocks(model)
    shards = Shards(dict(model.named_parameters()) if sharded else None)
    return Trainer(
        model=model,
        forward=paddle.DataParallel(model) if process.world_size() > 1 else model,
        objective=Supervised(),
        mixup=SmoothTargets(10, 0.1),
        optimizer=build_optimizer(CONFIG, model, steps=shards.steps),
        lr_at=lambda epoch: 1e-3,
        steps_per_epoch=STEPS * accum_iter,
        accum_iter=accum_iter,
        grad_clip=1.0,
        shards=shards,
    )


def run(case):
    size, accum_iter = map(int, case.rstrip("sr").split("x"))
    trainer = trainer_of(accum_iter, "s" in case, "r" in case)
    losses = []
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        images = rng.standard_normal((IMAGES, CONFIG.DATA.IMAGE_CHANNELS, 16, 16))
        labels = rng.integers(0, 10, IMAGES)
        total = 0.0
        for batch in range(accum_iter):
            first = (batch * process.world_size() + process.rank()) * size
            chosen = slice(first, first + size)
            total += trainer.train_step(paddle.to_tensor(images[chosen]), paddle.to_tensor(labels[chosen])).item()
        losses.append(total / accum_iter)
    state = optimizer_arrays(trainer.optimizer, trainer.model)
    whole = trainer.state()["optimizer"]
    if process.is_main():
        assert {key.rsplit("/", 1)[0] for key in whole} == {name for name, _ in trainer.model.named_parameters()}
    return {
        "losses": process.all_reduce_sum(paddle.to_tensor(losses)).numpy() / process.world_size(),
        "weights": np.concatenate([param.numpy().ravel() for param in trainer.model.parameters()]),
        "bytes": np.asarray(sum(value.nbytes for value in state.values())),
    }


def statistics():
    """Running means of a BatchNorm, before and after the end of an epoch."""
    paddle.seed(5)
    model = nn.Sequential(nn.BatchNorm2D(3), nn.Flatten(), nn.Linear(3 * 4, 10))
    trainer = Trainer(
        model=model,
        forward=paddle.DataParallel(model) if process.world_size() > 1 else model,
        objective=Supervised(),
        mixup=SmoothTargets(10, 0.1),
        optimizer=build_optimizer(CONFIG, model),
        lr_at=lambda epoch: 1e-3,
        steps_per_epoch=2,
        ema=ModelEma(model, decay=0.5),
    )
    before = []
    rng = np.random.default_rng(process.rank())
    batches = [(paddle.to_tensor(rng.standard_normal((4, 3, 2, 2))), paddle.to_tensor([0, 1, 2, 3])) for _ in "ab"]
    trainer.train_epoch(batches, lambda loss, waited: before.append(model[0]._mean.numpy().copy()))
    return {"own": before[-1], "model": model[0]._mean.numpy(), "ema": trainer.ema.model[0]._mean.numpy()}


def evaluations(data):
    paddle.seed(1)
    model = Averaged(build_model(get_config("pit_digits")), "flip")
    for size in (1, 7, 64):
        config = get_config("pit_digits", ["DATA.DATA_PATH", data, "DATA.BATCH_SIZE_EVAL", size])
        yield evaluate(model, build_eval_loader(config, rank=process.rank(), world_size=process.world_size()))


def main(device, folder, *cases):
    process.setup(device, 0)
    arrays = {"evaluations": json.dumps(list(evaluations(folder)))}
    paddle.set_default_dtype("float64")
    arrays |= {f"{case}/{name}": value for case in cases for name, value in run(case).items()}
    arrays |= {f"statistics/{name}": value for name, value in statistics().items()}
    np.savez(f"{folder}/{process.rank()}.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
