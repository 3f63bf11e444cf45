"""The optimizer's decay filter, the schedules, and state under parameter names."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.optim import (
    build_lr_schedule,
    build_optimizer,
    decay_split,
    load_optimizer_arrays,
    lr_schedule,
    optimizer_arrays,
    scaled_lr,
)


def test_decay_reaches_what_it_should_and_nothing_else():
    config = get_config("pit_digits", ["TRAIN.WEIGHT_DECAY", 0.5])
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    optimizer.set_lr(0.1)
    before = {name: param.numpy().copy() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = paddle.zeros_like(param)
    optimizer.step()
    shrunk = {name for name, param in model.named_parameters() if not np.array_equal(before[name], param.numpy())}
    expected = {
        name for name in before if before[name].ndim >= 2 and name.split(".")[-1] not in ("pos_embed", "cls_token")
    }
    assert shrunk == expected
    name = "head.weight"
    np.testing.assert_allclose(dict(model.named_parameters())[name].numpy(), 0.95 * before[name], rtol=1e-6)


def test_frozen_parameters_are_in_neither_group():
    model = nn.Linear(2, 2)
    model.weight.stop_gradient = True
    decayed, left = decay_split(model, [])
    assert (list(decayed), list(left)) == ([], ["bias"])


def test_gradient_is_clipped_by_one_norm_over_all_parameters():
    config = get_config("pit_digits", ["TRAIN.GRAD_CLIP", 1.0])
    model = build_model(config)
    clip = build_optimizer(config, model)._grad_clip
    for param in model.parameters():
        param.grad = paddle.ones_like(param)
    clipped = clip([(param, param.grad) for param in model.parameters()])
    total = math.sqrt(sum(float((grad.numpy().astype("float64") ** 2).sum()) for _, grad in clipped))
    assert total == pytest.approx(1.0, rel=1e-4)


def test_schedule_of_the_official_recipes():
    # Values of the published rule, worked out by hand: linear warm-up, then a cosine that counts from epoch 0.
    lr_at = lr_schedule(peak=1e-3, start=1e-6, end=1e-5, warmup_epochs=5, num_epochs=300)
    assert lr_at(0) == 1e-6
    assert lr_at(2.5) == pytest.approx((1e-6 + 1e-3) / 2)
    assert lr_at(5) == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 5 / 300)))
    assert lr_at(150) == pytest.approx((1e-3 + 1e-5) / 2)
    assert lr_at(300) == pytest.approx(1e-5)
    with pytest.raises(UserError, match="WARMUP_EPOCHS"):
        lr_schedule(peak=1, start=0, end=0, warmup_epochs=5, num_epochs=4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("epoch", [0, 0, 1, 2]), ("previous_epoch", [0, 0, 0, 1]), ("iteration", [0, 0.75, 1.5, 2.25])],
)
def test_schedule_by_epoch_previous_epoch_and_iteration(kind, expected):
    opts = [
        "TRAIN.LR_SCHEDULE",
        kind,
        "TRAIN.LINEAR_SCALED_LR",
        None,
        "TRAIN.BASE_LR",
        5.0,
        "TRAIN.WARMUP_START_LR",
        0.0,
    ]
    lr_at = build_lr_schedule(get_config("pit_ti_224", opts), 128)
    assert [lr_at(epoch) for epoch in (0, 0.75, 1.5, 2.25)] == pytest.approx(expected)


def test_linear_scaling_and_which_rates_it_reaches():
    assert scaled_lr(5e-4, 1024, 512) == 1e-3
    assert scaled_lr(5e-4, 1024, None) == 5e-4
    only_base = build_lr_schedule(get_config("pit_ti_224"), 1024)
    assert (only_base(0), only_base(301)) == pytest.approx((1e-6, 1e-5), rel=1e-3)
    everything = build_lr_schedule(get_config("pit_ti_224", ["TRAIN.SCALE_ALL_LRS", True]), 1024)
    assert (everything(0), everything(301)) == pytest.approx((2e-6, 2e-5), rel=1e-3)


def trained(steps, seed=0):
    paddle.seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = build_optimizer(get_config("pit_ti_224"), model)
    return model, optimizer, lambda: step(model, optimizer)


def step(model, optimizer):
    x = paddle.to_tensor(np.arange(6, dtype="float32").reshape(2, 3))
    (model(x) ** 2).mean().backward()
    optimizer.step()
    optimizer.clear_grad()


@pytest.mark.parametrize("layers_built_before", [0, 1, 5])
def test_state_goes_by_parameter_names_whatever_was_built_before(layers_built_before):
    model, optimizer, go = trained(0)
    for _ in range(3):
        go()
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    arrays = optimizer_arrays(optimizer, model)
    assert {name.rsplit("/", 1)[0] for name in arrays} == {name for name, _ in model.named_parameters()}
    assert len(arrays) == 4 * len(weights)
    go()
    for _ in range(layers_built_before):
        nn.Linear(2, 2)
    again, optimizer2, go2 = trained(0, seed=9)
    again.set_state_dict(weights)
    load_optimizer_arrays(optimizer2, again, arrays)
    go2()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), value.numpy())


def test_state_of_another_network_is_refused():
    model, optimizer, go = trained(0)
    go()
    arrays = optimizer_arrays(optimizer, model)
    other = nn.Linear(3, 3)
    with pytest.raises(UserError, match="another network"):
        load_optimizer_arrays(build_optimizer(get_config("pit_ti_224"), other), other, arrays)
