"""The optimizer's decay filter, the schedules, and state under parameter names."""

from __future__ import annotations

import logging
import math

import numpy as np
import paddle
import pytest
from paddle import nn
from tiny import but_slow

from golden import from_zeros
from paddlevit import build_model
from paddlevit.config import get_config, with_values
from paddlevit.errors import UserError
from paddlevit.layers import names_by_layer
from paddlevit.training.optim import (
    build_optimizer,
    decay_split,
    freeze,
    layer_rates,
    load_optimizer_arrays,
    optimizer_arrays,
)
from paddlevit.training.schedule import Schedule, build_lr_schedule, peak_lr, scaled_lr


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


def test_schedule_of_the_official_recipes():
    # Values of the published rule, worked out by hand: linear warm-up, then a cosine that counts from epoch 0.
    lr_at = Schedule(peak=1e-3, start=1e-6, end=1e-5, warmup_epochs=5, num_epochs=300)
    assert lr_at(0) == 1e-6
    assert lr_at(2.5) == pytest.approx((1e-6 + 1e-3) / 2)
    assert lr_at(5) == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 5 / 300)))
    assert lr_at(150) == pytest.approx((1e-3 + 1e-5) / 2)
    assert lr_at(300) == pytest.approx(1e-5)
    short = Schedule(peak=1e-3, start=0.0, end=0.0, warmup_epochs=5, num_epochs=1)
    assert (short(0), short(0.5), short(1)) == pytest.approx((0.0, 1e-4, 2e-4)), "a trial run ends within the warm-up"


def test_other_schedules():
    edges = {"peak": 1.0, "start": 0.0, "end": 0.1, "warmup_epochs": 4}
    step = Schedule(**edges, num_epochs=40, decay="step", step_epochs=10)
    assert [step(e) for e in (2, 4, 9.9, 10, 19, 20)] == pytest.approx([0.5, 1, 1, 0.19, 0.19, 0.109])
    assert [Schedule(**edges, num_epochs=40, decay="constant")(e) for e in (4, 39)] == [1.0, 1.0]
    prefixed = Schedule(**edges, num_epochs=12, prefix=True)
    assert [prefixed(e) for e in (0, 4, 8, 12)] == pytest.approx([0.0, 1.0, 0.55, 0.1])
    opts = ["TRAIN.LR_DECAY", "step", "TRAIN.LR_STEP_EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.END_LR", 0]
    built = build_lr_schedule(get_config("pit_ti_224", [*opts, "TRAIN.LR_SCHEDULE", "epoch"]), 512)
    assert [built(e) for e in (0, 1.9, 2, 4)] == pytest.approx([5e-4, 5e-4, 5e-5, 5e-6])


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lamb"])
def test_optimizers_step_as_their_papers_say_and_survive_a_resumed_run(name):
    config = get_config(
        "pit_digits", ["TRAIN.OPTIMIZER.NAME", name, "TRAIN.WEIGHT_DECAY", 0.1, "TRAIN.LAYER_DECAY", 0.9]
    )
    models, optimizers = [], []
    for _ in range(2):
        paddle.seed(0)
        models.append(build_model(config))
        optimizers.append(build_optimizer(config, models[-1]))
    rng, lr, steps = np.random.default_rng(0), 0.01, 3
    names = [key for key, _ in models[0].named_parameters()]
    key = "head.weight"  # which is decayed, at the full rate
    value = dict(models[0].named_parameters())[key].numpy().astype("float64")
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step in range(1, steps + 1):
        gradients = {n: rng.standard_normal(p.shape).astype("float32") for n, p in models[0].named_parameters()}
        if step == 3:  # the second one goes on from what the first one has saved
            models[1].set_state_dict(models[0].state_dict())
            load_optimizer_arrays(optimizers[1], models[1], optimizer_arrays(optimizers[0], models[0]))
        for model, optimizer in list(zip(models, optimizers))[: 2 if step == 3 else 1]:
            for n, param in model.named_parameters():
                param.grad = paddle.to_tensor(gradients[n])
            optimizer.set_lr(lr)
            optimizer.step()
        value, first, second = by_the_paper(name, value, gradients[key].astype("float64"), first, second, step, lr)
    np.testing.assert_allclose(dict(models[0].named_parameters())[key].numpy(), value, rtol=1e-4, atol=1e-6)
    ours, resumed = (dict(model.named_parameters()) for model in models)
    assert all(np.array_equal(ours[n].numpy(), resumed[n].numpy()) for n in names)


def by_the_paper(name, value, gradient, first, second, step, lr, decay=0.1):
    if name == "SGD":
        first = 0.9 * first + gradient + decay * value
        return value - lr * first, first, second
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8) + decay * value
    trust = np.linalg.norm(value) / np.linalg.norm(update) if name == "Lamb" else 1.0
    return value - lr * trust * update, first, second


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


@pytest.fixture
def said(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "paddlevit")
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


FINE_TUNING = ["TRAIN.BASE_LR", 5e-5, "TRAIN.LINEAR_SCALED_LR", 512, "TRAIN.NUM_EPOCHS", 30]


def test_a_small_batch_ends_at_its_peak_and_no_higher(said):
    """docs/fine-tuning.md's command: at 16 images the peak, 1.56e-6, lies under END_LR, 1e-5."""
    peak = 5e-5 * 16 / 512
    lr_at = build_lr_schedule(get_config("pit_s_224", FINE_TUNING), 16)
    rates = [lr_at(epoch) for epoch in range(30)]
    assert rates == pytest.approx([1e-6] + [1e-6 + (peak - 1e-6) * epoch / 5 for epoch in range(5)] + [peak] * 24)
    assert rates == [lr_at(epoch) for epoch in range(30)], "a pure function"
    assert said() == ["above the peak learning rate of 1.56e-06, and capped at it: TRAIN.END_LR 1e-05"]


def test_fine_tuning_at_384_pixels_on_few_images(said):
    lr_at = build_lr_schedule(get_config("pit_b_distilled_384"), 128)
    assert {lr_at(epoch) for epoch in range(6, 31)} == {1.25e-6}
    assert max(lr_at(epoch / 7) for epoch in range(210)) == 1.25e-6
    assert said() == ["above the peak learning rate of 1.25e-06, and capped at it: TRAIN.END_LR 5e-06"]


def test_the_start_of_the_warm_up_is_capped_too_where_there_is_one(said):
    opts = [*FINE_TUNING, "TRAIN.WARMUP_START_LR", 1e-4, "TRAIN.END_LR", 1e-7]
    lr_at = build_lr_schedule(get_config("pit_s_224", opts), 512)
    assert [lr_at(epoch) for epoch in range(6)] == [5e-5] * 6
    assert said() == ["above the peak learning rate of 5e-05, and capped at it: TRAIN.WARMUP_START_LR 0.0001"]
    build_lr_schedule(get_config("pit_s_224", [*opts, "TRAIN.WARMUP_EPOCHS", 0]), 512)
    build_lr_schedule(get_config("pit_s_224", FINE_TUNING), 512)
    assert len(said()) == 1


@pytest.mark.parametrize("kind", ["epoch", "previous_epoch", "iteration"])
@pytest.mark.parametrize("warmup", [0, 0.4, 2.5, 5, 40])
@pytest.mark.parametrize(("steps", "accum_iter"), [(1, 1), (7, 1), (7, 3)])
def test_the_peak_is_that_of_an_optimizer_step(kind, warmup, steps, accum_iter):
    opts = ["TRAIN.LR_SCHEDULE", kind, "TRAIN.WARMUP_EPOCHS", warmup, "TRAIN.NUM_EPOCHS", 12]
    lr_at = build_lr_schedule(get_config("pit_ti_224", opts), 1024)
    rates = [lr_at(epoch + step / steps) for epoch in range(12) for step in range(0, steps, accum_iter)]
    assert peak_lr(lr_at, 12, steps, accum_iter) == max(rates)


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
    with pytest.raises(UserError, match="another model"):
        load_optimizer_arrays(build_optimizer(get_config("pit_ti_224"), other), other, arrays)


SMALL = {
    "pit_digits": [],
    "hvt_digits": [],
    "cvt_digits": [],
    "hrformer_digits": [],
    "regnety_160": ["MODEL.WIDTHS", [8, 16], "MODEL.DEPTHS", [1, 2], "MODEL.GROUP_WIDTH", 8, "DATA.IMAGE_SIZE", 32],
}


def small(name, *opts):
    config = get_config(name, [*SMALL[name], *opts])
    paddle.seed(1)
    return config, build_model(config)


def names_of(model):
    return [name for name, param in model.named_parameters() if not param.stop_gradient]


# Read off the papers' figures: one block after the other, what widens the map with the block behind it.
LAYERS = {
    "pit_xs_distilled_224": {
        "cls_token": 0,
        "pos_embed": 0,
        "patch_embed.conv.weight": 0,
        "transformers.0.blocks.0.norm1.weight": 1,
        "transformers.0.blocks.1.mlp.fc2.bias": 2,
        "pools.0.fc.weight": 3,
        "transformers.1.blocks.0.attn.qkv.weight": 3,
        "transformers.1.blocks.5.attn.qkv.weight": 8,
        "pools.1.conv.bias": 9,
        "transformers.2.blocks.3.norm2.bias": 12,
        "norm.weight": 13,
        "head.weight": 13,
        "head_dist.bias": 13,
    },
    "hvt_ti_1_patch16_224": {
        "pos_embed": 0,
        "patch_embed.proj.bias": 0,
        "layers.0.pos_embed": 1,
        "layers.11.attn.proj.weight": 12,
        "norm.bias": 13,
        "head.bias": 13,
    },
    "cvt-13-224x224": {
        "stages.0.patch_embed.norm.weight": 0,
        "stages.0.blocks.0.attn.conv_proj_q.0.weight": 1,
        "stages.1.patch_embed.proj.weight": 2,
        "stages.1.blocks.0.norm1.weight": 2,
        "stages.1.blocks.1.norm1.weight": 3,
        "stages.2.cls_token": 4,
        "stages.2.patch_embed.proj.bias": 4,
        "stages.2.blocks.9.mlp.fc1.weight": 13,
        "head.weight": 14,
    },
    "hrt_tiny": {
        "conv1.weight": 0,
        "bn2.bias": 0,
        "layer1.0.downsample.0.weight": 1,
        "layer1.1.bn3.weight": 2,
        "transition1.0.0.weight": 3,
        "stage2.0.branches.0.0.norm1.weight": 3,
        "stage2.0.branches.1.1.norm1.weight": 4,
        "stage2.0.fuse_layers.0.1.0.weight": 5,
        "transition2.2.0.0.weight": 5,
        "stage3.0.branches.2.0.mlp.fc1.weight": 5,
        "stage3.2.branches.0.1.mlp.fc1.weight": 10,
        "stage4.1.branches.3.1.norm2.bias": 14,
        "stage4.1.fuse_layers.0.3.0.weight": 15,
        "incre_modules.0.0.conv1.weight": 15,
        "downsamp_modules.2.0.weight": 15,
        "final_layer.0.bias": 15,
        "classifier.weight": 15,
    },
    "regnety_160": {
        "stem.0.weight": 0,
        "stages.0.blocks.0.conv1.weight": 1,
        "stages.1.blocks.0.downsample.bn.bias": 3,
        "stages.2.blocks.10.se.conv1_1x1.bias": 17,
        "stages.3.blocks.0.conv3.weight": 18,
        "head.2.bias": 19,
    },
}


def layer_of(model):
    return {name: layer for layer, group in enumerate(model.layer_groups()) for name in group}


@pytest.mark.parametrize("variant", sorted(LAYERS))
def test_layers_count_from_the_stem_to_the_head(variant):
    narrow = ["MODEL.WIDTHS", [8] * 4, "MODEL.GROUP_WIDTH", 8] if variant == "regnety_160" else []
    with from_zeros():
        model = build_model(get_config(variant, narrow))
    ids = layer_of(model)
    assert {name: ids[name] for name in LAYERS[variant]} == LAYERS[variant]
    assert sorted(set(ids.values())) == list(range(max(ids.values()) + 1))
    assert {name for name in ids if name.startswith(type(model).head_prefixes)} <= {
        name for name, layer in ids.items() if layer == max(ids.values())
    }


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"hrformer_digits"}))
def test_layers_follow_the_forward_pass(name):
    config, model = small(name)
    ids, ran = layer_of(model), []
    for path, layer in model.named_sublayers():
        own = [f"{path}.{key}" for key in names_of(layer) if "." not in key]
        layer.register_forward_pre_hook(lambda *_, own=own: ran.extend(ids[key] for key in own))
    model.eval()
    model(paddle.zeros([1, 3, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE]))
    assert ran == sorted(ran) and set(ran) == set(ids.values())


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_parameter_is_in_one_group(name):
    for opts in ([], ["MODEL.NUM_CLASSES", 0]):
        model = small(name, *opts)[1]
        groups = model.layer_groups()
        assert sorted(key for group in groups for key in group) == sorted(names_of(model))
        assert all(groups)


def test_a_parameter_without_a_layer_is_noticed():
    with pytest.raises(AssertionError, match="Sequential: 1.weight belongs to no layer"):
        names_by_layer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), [["0"]])


def test_names_in_the_configuration_replace_those_of_the_model():
    def spared(*opts):
        config, model = small("pit_digits", *opts)
        return {key for key, param in decay_split(model, config.TRAIN.NO_WEIGHT_DECAY)[1].items() if param.ndim > 1}

    assert spared() == {"pos_embed", "cls_token"}
    assert spared("TRAIN.NO_WEIGHT_DECAY", ["pos_embed", "dist_token"]) == {"pos_embed"}
    assert spared("TRAIN.NO_WEIGHT_DECAY", []) == set()


def adamw(weight, gradients, *, lrs, decay, betas=(0.9, 0.999), eps=1e-8):
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) in float64; Paddle's and PyTorch's decay is lr * decay * weight."""
    m = v = 0.0
    for t, (g, lr) in enumerate(zip(gradients, lrs), 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        step = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        weight = weight - lr * decay * weight - lr * step
    return weight


@pytest.mark.parametrize("name", but_slow(sorted(SMALL), "hrformer_digits"))
@pytest.mark.parametrize("layer_decay", [1.0, 0.65])
def test_a_layers_learning_rate_reaches_update_and_decay(name, layer_decay):
    config, model = small(name, "TRAIN.LAYER_DECAY", layer_decay, "TRAIN.WEIGHT_DECAY", 0.3)
    rng, lrs = np.random.default_rng(0), (1e-2, 3e-3, 2e-2)
    trained = {key: param for key, param in model.named_parameters() if not param.stop_gradient}
    before = {key: param.numpy().astype("float64") for key, param in trained.items()}
    gradients = {key: rng.normal(size=(len(lrs), *value.shape)) for key, value in before.items()}
    optimizer = build_optimizer(config, model)
    for step_number, lr in enumerate(lrs):
        optimizer.set_lr(lr)
        for key, param in trained.items():
            param.grad = paddle.to_tensor(gradients[key][step_number].astype("float32"))
        optimizer.step()
    decayed = decay_split(model, config.TRAIN.NO_WEIGHT_DECAY)[0]
    ids = layer_of(model)
    for key, param in trained.items():
        rate = layer_decay ** (max(ids.values()) - ids[key])
        expected = adamw(
            before[key], gradients[key], lrs=[lr * rate for lr in lrs], decay=0.3 if key in decayed else 0.0
        )
        np.testing.assert_allclose(param.numpy(), expected, rtol=2e-4, atol=2e-6, err_msg=key)


def test_layer_decay_is_a_share():
    assert set(layer_rates(small("pit_digits")[1], 1.0).values()) == {1.0}
    with pytest.raises(UserError, match="LAYER_DECAY"):
        get_config("pit_digits", ["TRAIN.LAYER_DECAY", 1.5])


HEADS = {"pit": "head.", "hvt": "head.", "cvt": "head.", "hrformer": "classifier.", "regnet": "head.2."}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_linear_probe_moves_the_head_and_nothing_else(name):
    config, model = small(name)
    head = HEADS[config.MODEL.TYPE]
    names = names_of(model)
    frozen = freeze(model, ["*", f"!{head}*"])
    assert frozen == [key for key in names if not key.startswith(head)]
    optimizer = build_optimizer(config, model)
    before = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    model.train()
    images = paddle.randn([4, 3, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE])
    model(images).square().mean().backward()
    assert {key for key, param in model.named_parameters() if param.grad is not None} == set(names) - set(frozen)
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not np.array_equal(before[key], value.numpy())}
    assert changed == {f"{head}weight", f"{head}bias"}  # no running statistics of BatchNorm among them
    assert {key.rsplit("/", 1)[0] for key in optimizer_arrays(optimizer, model)} == changed
    assert sum(len(group) for group in decay_split(model, [])) == 2


def test_a_frozen_batch_norm_normalises_as_in_evaluation_and_passes_gradients():
    layer = nn.Sequential(nn.BatchNorm2D(3), nn.Conv2D(3, 2, 1))
    layer[0]._mean.set_value(paddle.to_tensor([1.0, 2.0, 3.0]))
    layer[0]._variance.set_value(paddle.to_tensor([4.0, 0.25, 1.0]))
    freeze(layer, ["0.*"])
    x = paddle.randn([2, 3, 4, 4])
    x.stop_gradient = False
    layer.train()
    y = layer[0](x)
    expected = (x.numpy() - [[[[1.0]], [[2.0]], [[3.0]]]]) / np.sqrt([[[[4.0]], [[0.25]], [[1.0]]]])
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)
    y.sum().backward()  # with statistics of the batch this gradient would be 0
    np.testing.assert_allclose(x.grad.numpy()[0, :, 0, 0], [0.5, 2.0, 1.0], rtol=1e-4)


def test_batch_norm_with_something_to_train_goes_on_as_ever():
    _, model = small("cvt_digits")
    freeze(model, ["stages.0.*", "!*.bias"])
    model.train()
    before = {key: value.numpy().copy() for key, value in model.state_dict().items() if key.endswith("_mean")}
    model(paddle.randn([4, 3, 32, 32]))
    assert all(not np.array_equal(before[key], model.state_dict()[key].numpy()) for key in before)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (
            ["patch_embd.*"],
            r"'patch_embd\.\*' matches no parameter; the nearest ones are patch_embed\.conv\.(weight|bias)",
        ),
        (["head", "*"], "'head' matches no parameter"),
        (["*", "!heads.*"], "'!heads"),
        (["*"], "leaves no parameter to train"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns, said):
    _, model = small("pit_digits")
    with pytest.raises(UserError, match=said):
        freeze(model, patterns)


def test_nothing_is_frozen_without_a_pattern():
    _, model = small("cvt_digits")
    names = names_of(model)
    assert freeze(model, []) == []
    assert names_of(model) == names
    assert get_config("pit_digits", ["TRAIN.FREEZE", '["*", "!head*"]']).TRAIN.FREEZE == ["*", "!head*"]


@pytest.mark.parametrize(("before", "now"), [("Lamb", "SGD"), ("SGD", "AdamW")])
def test_state_of_another_optimizer_is_refused(before, now):
    config, model = small("pit_digits")
    before, now = (with_values(config, {"TRAIN.OPTIMIZER.NAME": name}) for name in (before, now))
    optimizer = build_optimizer(before, model)
    for param in model.parameters():
        param.grad = paddle.ones_like(param)
    optimizer.step()
    with pytest.raises(UserError, match=r"another TRAIN\.OPTIMIZER\.NAME"):
        load_optimizer_arrays(build_optimizer(now, model), model, optimizer_arrays(optimizer, model))


def test_state_of_frozen_networks_resumes_and_other_freezing_is_refused():
    config, model = small("pit_digits")
    freeze(model, ["*", "!head.*"])
    optimizer = build_optimizer(config, model)
    for param in model.parameters():
        if not param.stop_gradient:
            param.grad = paddle.ones_like(param)
    optimizer.step()
    arrays = optimizer_arrays(optimizer, model)
    _, again = small("pit_digits")
    with pytest.raises(UserError, match=r"TRAIN\.FREEZE"):
        load_optimizer_arrays(build_optimizer(config, again), again, arrays)
    freeze(again, ["*", "!head.*"])
    resumed = build_optimizer(config, again)
    load_optimizer_arrays(resumed, again, arrays)
    loaded = optimizer_arrays(resumed, again)
    assert loaded.keys() == arrays.keys()
    assert all(np.array_equal(loaded[key], arrays[key]) for key in arrays)
