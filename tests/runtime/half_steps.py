"""Trains variants in float16 on the fake device, and in float32 on the CPU: half_steps.py VARIANT,LEVEL,STEPS...

Prints what test_fake_device.py compares, a line of JSON for each.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle

from paddlevit.config import get_config
from paddlevit.run.build import build_trainer
from paddlevit.runtime import process, settings

BATCHES = 2
OWN = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "DATA.BATCH_SIZE", 8, "TRAIN.BASE_LR", 1e-3]
OWN += ["TRAIN.MIXUP_ALPHA", 0.0, "TRAIN.CUTMIX_ALPHA", 0.0]
OWN += ["TRAIN.MODEL_EMA", True, "TRAIN.MODEL_EMA_WARMUP", False, "TRAIN.MODEL_EMA_DECAY", 0.9]


def build(variant, *opts):
    trainer = build_trainer(get_config(variant, [*OWN, *opts]), steps_per_epoch=1000)
    trainer.model.train()
    return trainer


def train(trainer, data, steps):
    """Losses of `steps` steps, which take a few batches by turns."""
    shape, losses = (8, data.IMAGE_CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE), []
    for _ in range(steps):
        rng = np.random.default_rng(trainer.step % BATCHES)
        images, labels = rng.standard_normal(shape).astype("float32"), rng.integers(0, 10, 8)
        losses.append(trainer.train_step(paddle.to_tensor(images), paddle.to_tensor(labels)).item())
    return losses


def operators(trainer, data):
    """Names of the operators of a forward pass, as Paddle's lists have them: how often in float16, in float32."""
    images = paddle.randn([8, data.IMAGE_CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE])
    paddle.set_flags({"FLAGS_low_precision_op_list": 1})
    paddle.base.core.clear_low_precision_op_list()
    with paddle.no_grad(), trainer.autocast():
        trainer.objective(trainer.model, images, trainer.mixup(images, paddle.zeros([8], "int64"), (0,))[1])
    paddle.set_flags({"FLAGS_low_precision_op_list": 0})
    calls = {name: counts.split(",") for name, counts in paddle.base.core.get_low_precision_op_list().items()}
    return {name: (int(half), int(full)) for name, (half, _, full, _) in calls.items()}


def differences(one, other):
    """Largest ones of the weights, and of their EMA."""
    pairs = [(each.model.state_dict(), each.ema.model.state_dict()) for each in (one, other)]
    arrays = [[{name: value.numpy() for name, value in state.items()} for state in pair] for pair in pairs]
    return [max(float(np.abs(a[name] - b[name]).max()) for name in a) for a, b in zip(*arrays)]


def resumed(trainer, state):
    trainer.model.set_state_dict({name: value.numpy() for name, value in state["model"].items()})
    trainer.ema.model.set_state_dict({name: value.numpy() for name, value in state["ema"].items()})
    trainer.load_state({name: np.asarray(value) for name, value in state["optimizer"].items()}, state["progress"])
    return trainer


def main(variant, level, steps):
    data, half = get_config(variant).DATA, ("AMP", True, "AMP_OPT_LEVEL", level)
    process.setup("cpu", seed=0)
    full = train(build(variant), data, steps)
    process.setup("custom:FakeCPU", seed=0)
    undisturbed, left = build(variant, *half), steps - steps // 2
    losses = train(undisturbed, data, steps // 2)
    second = resumed(build(variant, *half), undisturbed.state())
    losses += train(undisturbed, data, left)
    train(second, data, left)
    found = {
        "losses": [losses, full],
        "skipped": undisturbed.read_skipped(),
        "scale": undisturbed.loss_scale.state()["scale"],
        "differences": differences(undisturbed, second),
        "weights": sorted({str(value.dtype) for value in undisturbed.model.state_dict().values()}),
        "ema": sorted({str(value.dtype) for value in undisturbed.ema.model.state_dict().values()}),
        "operators": operators(undisturbed, data),
    }
    print(json.dumps(found), flush=True)


settings.turn_off_stride_kernels()  # Paddle was imported before the package
for case in sys.argv[1:]:
    variant, level, steps = case.split(",")
    main(variant, level, int(steps))
