"""Every shipped recipe against the official one, stated here anew from the official sources (docs/recipes.md).

Nothing of this page is read from our yaml files: values, learning rates epoch by epoch, and who does not decay.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from paddle import nn

from paddlevit import build_model
from paddlevit.config import get_config, variant_names
from paddlevit.training.optim import decay_split
from paddlevit.training.schedule import build_lr_schedule

# What timm's create_transform does for "rand-m9-mstd0.5-inc1", re_prob 0.25, and what all four projects mix with.
AUGMENTED = {
    "TRAIN.RAND_AUGMENT": True,
    "TRAIN.RAND_AUGMENT_LAYERS": 2,
    "TRAIN.RAND_AUGMENT_MAGNITUDE": 9,
    "TRAIN.RAND_AUGMENT_STD": 0.5,
    "TRAIN.AUTO_AUGMENT": False,
    "TRAIN.RANDOM_ERASE_PROB": 0.25,
    "TRAIN.RANDOM_ERASE_MODE": "pixel",
    "TRAIN.RANDOM_ERASE_COUNT": 1,
    "TRAIN.COLOR_JITTER": 0.4,
    "TRAIN.CROP": "random_resized",
    "TRAIN.HFLIP": 0.5,
    "TRAIN.SMOOTHING": 0.1,
    "TRAIN.MIXUP_ALPHA": 0.8,
    "TRAIN.CUTMIX_ALPHA": 1.0,
    "TRAIN.CUTMIX_MINMAX": None,
    "TRAIN.MIXUP_PROB": 1.0,
    "TRAIN.MIXUP_SWITCH_PROB": 0.5,
    "TRAIN.MIXUP_MODE": "batch",
}
COMMON = {
    **AUGMENTED,
    "TRAIN.OPTIMIZER.NAME": "AdamW",
    "TRAIN.OPTIMIZER.EPS": 1e-8,
    "TRAIN.OPTIMIZER.BETAS": [0.9, 0.999],
    "TRAIN.NUM_EPOCHS": 300,
    "TRAIN.GRAD_CLIP": None,
    "TRAIN.LAYER_DECAY": 1.0,
    "TRAIN.FREEZE": None,
    "TRAIN.MODEL_EMA": False,
    "TRAIN.REPEATED_AUG": 1,
    "TRAIN.DISTILLATION_TYPE": "none",
    "DATA.INTERPOLATION": "bicubic",
    "DATA.RESIZE_MODE": "crop",
    "DATA.CROP_PCT": 0.875,
    "DATA.IMAGENET_MEAN": [0.485, 0.456, 0.406],
    "DATA.IMAGENET_STD": [0.229, 0.224, 0.225],
}
HVT = {**COMMON, "TRAIN.WEIGHT_DECAY": 0.025, "TRAIN.REPEATED_AUG": 3, "MODEL.DROPPATH": 0.1}
HRT = {**COMMON, "TRAIN.WEIGHT_DECAY": 0.05, "TRAIN.GRAD_CLIP": 5.0, "MODEL.HRT.DROP_PATH_RATE": 0.0}
DEIT = {**COMMON, "TRAIN.WEIGHT_DECAY": 0.05, "TRAIN.REPEATED_AUG": 3}
# Evaluation at crop 0.9 is timm's and PaddleViT's; NAVER's figures are at 0.875.
PIT = {**DEIT, "MODEL.DROPPATH": 0.1, "TRAIN.MODEL_EMA": True, "TRAIN.MODEL_EMA_DECAY": 0.99996, "DATA.CROP_PCT": 0.9}
HARD = {"TRAIN.DISTILLATION_TYPE": "hard", "TRAIN.DISTILLATION_ALPHA": 0.5, "TRAIN.DISTILLATION_TAU": 1.0}
HARD = {**HARD, "TRAIN.TEACHER_MODEL": "regnety_160", "MODEL.DISTILLED": True}
FINE = {"TRAIN.NUM_EPOCHS": 30, "TRAIN.WEIGHT_DECAY": 1e-8, "MODEL.DROPPATH": 0.0, "DATA.CROP_PCT": 1.0}
# No RandAugment, no erasing and no jitter: the loader that would do it is off.
PLAIN = {"TRAIN.RAND_AUGMENT": False, "TRAIN.RANDOM_ERASE_PROB": 0.0, "TRAIN.COLOR_JITTER": 0.0}
SQUASH = {"DATA.RESIZE_MODE": "squash"}


def cvt(decay, drop_path, **values):
    return {**COMMON, "TRAIN.WEIGHT_DECAY": decay, "MODEL.DROP_PATH_RATE": [0.0, 0.0, drop_path], **values}


OFFICIAL = {
    "hvt_ti_1_patch16_224": HVT,
    "hvt_s0_patch16_224": HVT,
    "hvt_s1_patch16_224": HVT,
    "hvt_s2_patch16_224": HVT,
    "hvt_s3_patch16_224": HVT,
    "hvt_s4_patch16_224": HVT,
    "scale_hvt_ti_4_patch16_224": HVT,
    "hvt_ti_1_cifar100": {**HVT, "DATA.DATASET": "cifar100", "DATA.IMAGE_SIZE": 224, "MODEL.NUM_CLASSES": 100},
    "hvt_s1_cifar100": {**HVT, "DATA.DATASET": "cifar100", "DATA.IMAGE_SIZE": 224, "MODEL.NUM_CLASSES": 100},
    "cvt-13-224x224": cvt(0.05, 0.1),
    "cvt-13-384x384": cvt(0.05, 0.1, **SQUASH),
    "cvt-21-224x224": cvt(0.1, 0.1, **PLAIN, **{"TRAIN.REPEATED_AUG": 3}),
    "cvt-21-384x384": cvt(0.1, 0.1, **SQUASH),
    "cvt-w24-384x384": cvt(0.1, 0.3, **SQUASH),
    "hrt_tiny": HRT,
    "hrt_small": HRT,
    "hrt_base": {**HRT, "MODEL.HRT.DROP_PATH_RATE": 0.2},
    **{f"pit_{size}_224": PIT for size in ("ti", "xs", "s", "b")},
    **{f"pit_{size}_distilled_224": {**PIT, **HARD} for size in ("ti", "xs", "s", "b")},
    "pit_b_distilled_384": {**PIT, **HARD, **FINE},
    "regnety_160": {**DEIT, "DATA.CROP_PCT": 0.95},
}


def value(config, key):
    for part in key.split("."):
        config = config[part]
    return config


DEMOS = {path.stem for path in (Path(__file__).parents[1] / "configs" / "demo").glob("[!_]*.yaml")}


def test_every_variant_has_its_recipe_here():
    assert set(OFFICIAL) == set(variant_names()) - DEMOS


@pytest.mark.parametrize("name", OFFICIAL)
def test_values(name):
    config = get_config(name)
    assert {key: value(config, key) for key in OFFICIAL[name]} == OFFICIAL[name]


class TimmCosine:
    """timm 0.3's CosineLRScheduler as the four projects use it: told a time `t` from outside, it sets `lr`."""

    def __init__(self, base, floor, *, period, warm_up, warm_start):
        self.base, self.floor, self.period, self.warm_up, self.warm_start = base, floor, period, warm_up, warm_start
        self.lr = warm_start if warm_up else base

    def step(self, t):
        if t < self.warm_up:
            self.lr = self.warm_start + t * ((self.base - self.warm_start) / self.warm_up)
        elif t < self.period:
            self.lr = self.floor + 0.5 * (self.base - self.floor) * (1 + math.cos(math.pi * t / self.period))
        else:
            self.lr = self.floor


def stepped_after_each_epoch(base, *, floor=1e-5, epochs=300):
    """HVT and DeiT: train epoch e, then step(e)."""
    scheduler = TimmCosine(base, floor, period=epochs, warm_up=5, warm_start=1e-6)
    for epoch in range(epochs):
        yield scheduler.lr
        scheduler.step(epoch)


def stepped_to_the_next_epoch(base):
    """CvT: step(first epoch) when it is built; train epoch e, then step(e + 1)."""
    scheduler = TimmCosine(base, 1e-5, period=300, warm_up=5, warm_start=1e-6)
    scheduler.step(0)
    for epoch in range(300):
        yield scheduler.lr
        scheduler.step(epoch + 1)


# A reference batch, and the learning rate after scaling at it.
PER_EPOCH = {
    **{name: (128 * 8, stepped_after_each_epoch(1e-3)) for name in variant_names("*hvt_*patch16*")},
    "hvt_ti_1_cifar100": (128, stepped_after_each_epoch(1.25e-4)),
    "hvt_s1_cifar100": (1024, stepped_after_each_epoch(1e-3)),
    **{name: (256 * 4, stepped_after_each_epoch(1e-3)) for name in variant_names("pit_*_224")},
    "pit_b_distilled_384": (32 * 16, stepped_after_each_epoch(5e-6, floor=5e-6, epochs=30)),
    "regnety_160": (1024, stepped_after_each_epoch(1e-3)),
    **{name: (256 * 8, stepped_to_the_next_epoch(2.5e-4 * 8)) for name in variant_names("cvt-13-*")},
    **{name: (128 * 8, stepped_to_the_next_epoch(1.25e-4 * 8)) for name in variant_names("cvt-[2w]*")},
}
HRT_NAMES = variant_names("hrt_*")


def test_every_schedule_is_stated():
    assert {*PER_EPOCH, *HRT_NAMES} == set(OFFICIAL)


@pytest.mark.parametrize("name", PER_EPOCH)
def test_learning_rate_of_every_epoch(name):
    batch, official = PER_EPOCH[name]
    lr_at = build_lr_schedule(get_config(name), batch)
    expected = list(official)
    assert [lr_at(epoch) for epoch in range(len(expected))] == pytest.approx(expected, rel=1e-12)
    assert [lr_at(epoch + 0.99) for epoch in range(len(expected))] == pytest.approx(expected, rel=1e-12)


def test_epochs_0_1_2_5_100_299_in_figures():
    """The same by hand: HVT's and PiT's epochs 0 and 1 are alike, CvT's are not, and at the end neither is at 1e-5."""
    deit = build_lr_schedule(get_config("pit_ti_224"), 1024)
    cvt13 = build_lr_schedule(get_config("cvt-13-224x224"), 2048)
    epochs = (0, 1, 2, 5, 100, 299)
    assert [deit(epoch) for epoch in epochs] == pytest.approx(
        [1e-6, 1e-6, 2.008e-4, 8.002e-4, 7.5697550e-04, 1.0108562e-05], rel=1e-6
    )
    assert [cvt13(epoch) for epoch in epochs] == pytest.approx(
        [1e-6, 4.008e-4, 8.006e-4, 1.9986364e-03, 1.5025000e-03, 1.0054556e-05], rel=1e-6
    )


@pytest.mark.parametrize("name", HRT_NAMES)
@pytest.mark.parametrize("batch", [1024, 256])
def test_learning_rate_of_hrformers_iterations(name, batch):
    """HRFormer: one iteration, then step_update(its number); all three rates are scaled by batch / 512."""
    steps = 50  # in an epoch
    scale = batch / 512
    scheduler = TimmCosine(5e-4 * scale, 5e-6 * scale, period=300 * steps, warm_up=20 * steps, warm_start=5e-7 * scale)
    official = []
    for iteration in range(300 * steps):
        official.append(scheduler.lr)
        scheduler.step(iteration)
    assert official[:2] == pytest.approx([5e-7 * scale, 5e-7 * scale])
    lr_at = build_lr_schedule(get_config(name), batch)
    # Ours is the rate of the iteration itself, theirs that of the iteration before: 1 in some 300,000.
    assert [lr_at(iteration / steps) for iteration in range(300 * steps - 1)] == pytest.approx(official[1:], rel=1e-9)
    assert lr_at(300) == pytest.approx(5e-6 * scale)


SMALL = {
    "hvt_ti_1_patch16_224": ["MODEL.EMBED_DIM", 24],
    "cvt-13-224x224": ["MODEL.DIM_EMBED", [8, 12, 24], "MODEL.DEPTH", [1, 1, 1]],
    "hrt_tiny": [],
    "pit_ti_distilled_224": ["MODEL.BASE_DIMS", [8, 8, 8]],
    "regnety_160": ["MODEL.WIDTHS", [8] * 4, "MODEL.GROUP_WIDTH", 8],
}
TOKENS = {  # tensors with more than one axis that the official code names
    "hvt_ti_1_patch16_224": {"pos_embed", "layers.0.pos_embed"},  # models.py: every name with pos_embed in it
    "cvt-13-224x224": {"stages.2.cls_token"},  # cls_cvt.py: stage{i}.pos_embed and stage{i}.cls_token
    "hrt_tiny": set(),  # optimizer.py: nothing, so the tables of relative positions decay
    "pit_ti_distilled_224": {"pos_embed", "cls_token"},  # pit.py; both tokens are one tensor
    "regnety_160": set(),
}


@pytest.mark.parametrize("name", SMALL)
def test_who_does_not_decay(name):
    """Norms and biases, found by the kind of their layer, and the tokens above."""
    config = get_config(name, SMALL[name])
    model = build_model(config)
    expected = set(TOKENS[name])
    for path, layer in model.named_sublayers():
        if isinstance(layer, (nn.LayerNorm, nn.BatchNorm2D)):
            expected |= {f"{path}.weight", f"{path}.bias"}
        elif isinstance(layer, (nn.Linear, nn.Conv2D)) and layer.bias is not None:
            expected.add(f"{path}.bias")
    decayed, left = decay_split(model, config.TRAIN.NO_WEIGHT_DECAY)
    assert set(left) == expected
    trainable = {key for key, param in model.named_parameters() if not param.stop_gradient}
    assert set(decayed) == trainable - expected
    assert any("relative_position_bias_table" in key for key in decayed) == (name == "hrt_tiny")
