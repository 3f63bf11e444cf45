"""Five steps of the official networks through our Trainer and optimizer, in float64: losses, gradients, weights."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from golden import from_zeros, golden_images, golden_state, training
from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.data.mixup import SmoothTargets
from paddlevit.layers import DropPath
from paddlevit.training.engine import Trainer
from paddlevit.training.objectives import Supervised
from paddlevit.training.optim import build_optimizer
from paddlevit.weights import convert_state_dict, load_weights

RUNS = [
    ("pit_ti_224", "first"),
    ("pit_ti_224", "slow"),
    ("pit_ti_distilled_224", "first"),
    ("hvt_ti_1_patch16_224", "first"),
    ("cvt-13-224x224", "first"),
    ("hrt_tiny", "first"),
]


@pytest.fixture(params=["float64"], autouse=True)
def dtype(request):
    paddle.set_default_dtype(request.param)
    yield request.param
    paddle.set_default_dtype("float32")


def trainer_of(name, lr):
    """Our trainer at the start of the golden run of `name`: no drop path, constant learning rate, no clipping."""
    config = get_config(name, ["TRAIN.GRAD_CLIP", None, "TRAIN.WEIGHT_DECAY", 0.05])
    with from_zeros():
        model = build_model(config)
    load_weights(model, golden_state(name, "official"), source="official")
    for module in model.sublayers():
        if isinstance(module, DropPath):
            module.rate = 0.0
    return Trainer(
        model=model,
        objective=Supervised(),
        mixup=SmoothTargets(config.MODEL.NUM_CLASSES, 0.0),
        optimizer=build_optimizer(config, model),
        lr_at=lambda epoch: lr,
        steps_per_epoch=6,
    )


def our_names(name, model):
    """Official parameter name -> ours, told by a number that the conversion carries along."""
    state = golden_state(name, "official")
    tagged = {key: np.full(value.shape, i, dtype="float32") for i, (key, value) in enumerate(state.items())}
    for key, value in state.items():
        if value.dtype.kind == "i":
            tagged[key] = value
    keys = list(state)
    return {keys[int(value.ravel()[0])]: ours for ours, value in convert_state_dict(tagged, model, "official").items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run"), RUNS)
def test_golden_training_run(name, run):
    golden = training(name)
    record = golden if run == "first" else golden["slow"]
    trainer = trainer_of(name, record.get("lr", golden["optimizer"]["lr"]))
    params = dict(trainer.model.named_parameters())
    official = {key: params[ours] for key, ours in our_names(name, trainer.model).items() if ours in params}
    images = paddle.to_tensor(golden_images(0, golden["batch"], golden["image_size"]).astype("float64"))
    labels = paddle.to_tensor(golden["labels"])
    losses, gradients = [], []
    optimizer_step = trainer.optimizer.step

    def note_gradients():
        gradients.append({key: norm(param.grad) for key, param in official.items() if param.grad is not None})
        optimizer_step()

    trainer.optimizer.step = note_gradients
    for _ in range(5):
        losses.append(trainer.train_step(images, labels).item())
    after = {key: norm(param) for key, param in official.items()}
    losses.append(loss_of(trainer, images, labels))

    np.testing.assert_allclose(losses, record["losses_f64"], rtol=0, atol=1e-7)
    for key, expected in golden["grad_norms_f64"].items():
        assert abs(gradients[0][key] - expected) <= 1e-9 * golden["grad_total_norm_f64"], key
    if run == "first":
        for key, expected in golden["param_norms_after_5_steps_f64"].items():
            assert after[key] == pytest.approx(expected, rel=0, abs=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
@pytest.mark.parametrize("name", ["pit_ti_224", "hvt_ti_1_patch16_224"])
def test_golden_training_run_in_float32(name, dtype):
    golden = training(name)
    trainer = trainer_of(name, golden["optimizer"]["lr"])
    images = paddle.to_tensor(golden_images(0, golden["batch"], golden["image_size"]))
    labels = paddle.to_tensor(golden["labels"])
    losses = [trainer.train_step(images, labels).item() for _ in range(5)] + [loss_of(trainer, images, labels)]
    np.testing.assert_allclose(losses, golden["losses_f64"], rtol=0, atol=golden["tolerance"]["f32_losses_abs"])
    assert losses[0] == pytest.approx(golden["losses_f64"][0], abs=golden["tolerance"]["f32_first_loss_abs"])


def loss_of(trainer, images, labels):
    """What a further step would tell, at a third of its cost."""
    images, targets = trainer.mixup(images, labels, (0,))
    with paddle.no_grad():
        return trainer.objective(trainer.model, images, targets)[0].item()


def norm(tensor):
    return float(np.linalg.norm(tensor.numpy()))
