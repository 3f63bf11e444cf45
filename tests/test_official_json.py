"""The json files of official HVT: the same network and recipe as its main.py makes of them."""

from __future__ import annotations

import json
import logging

import pytest

from paddlevit.config import ConfigError, ConfigKeyError, ConfigTypeError, get_config
from paddlevit.hvt import build_hvt

# As in config/hvt-s-2.json.
S2 = {
    "model": "hvt_model",
    "batch_size": 128,
    "exp_name": "hvt-s-2",
    "input_size": 224,
    "patch_size": 16,
    "num_heads": 6,
    "head_dim": 64,
    "num_blocks": 12,
    "num_workers": 10,
    "pool_kernel_size": 3,
    "pool_stride": 2,
    "pool_block_width": 6,
    "weight_decay": 0.025,
}


def write(folder, content):
    path = folder / "hvt.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent="\t"), encoding="utf-8")
    return path


def test_it_is_the_shipped_variant(tmp_path, caplog):
    caplog.set_level(logging.INFO, "paddlevit")
    theirs = get_config(write(tmp_path, S2), ["MODEL.NAME", "hvt_s2_patch16_224"])
    assert theirs == get_config("hvt_s2_patch16_224", ["DATA.BATCH_SIZE", 128])
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'hvt.json'}: ignored num_workers"]


def test_what_it_leaves_out_is_as_in_params_py(tmp_path):
    config = get_config(write(tmp_path, {}))
    model, train = config.MODEL, config.TRAIN
    assert (model.TYPE, model.NAME, model.EMBED_DIM, model.NUM_HEADS) == ("hvt", "hvt", 192, 3)
    assert (model.DEPTH, model.POOL_KERNEL_SIZE, model.POOL_STRIDE, model.POOL_BLOCK_WIDTH) == (12, 3, 2, 4)
    assert (config.DATA.BATCH_SIZE, train.WEIGHT_DECAY, train.REPEATED_AUG, train.NUM_EPOCHS) == (64, 0.05, 3, 300)


def test_all_knobs_of_the_network(tmp_path, caplog):
    knobs = {"input_size": 96, "patch_size": 8, "num_heads": 4, "head_dim": 32, "num_blocks": 5}
    pools = {"pool_kernel_size": 4, "pool_stride": 3, "pool_block_width": 3}
    model = build_hvt(get_config(write(tmp_path, {**knobs, **pools}), ["MODEL.NUM_CLASSES", 7]))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["pos_embed"] == [1, 144, 128]
    assert shapes["patch_embed.proj.weight"] == [128, 3, 8, 8]
    pooled = {name: shape for name, shape in shapes.items() if name.startswith("layers.") and "pos_embed" in name}
    assert pooled == {"layers.0.pos_embed": [1, 47, 128], "layers.3.pos_embed": [1, 15, 128]}
    assert (len(model.layers), model.layers[0].attn.num_heads, shapes["head.weight"]) == (5, 4, [128, 7])
    assert "pool_stride 3 is used; the official code always pools by 2" in caplog.text


def test_small_images_keep_their_size(tmp_path):
    """datasets.py's build_transform: up to 32 pixels nothing is resized, and training pads by 4 before it crops."""
    for size, crop, share in ((32, "padded", 1.0), (33, "random_resized", 0.875)):
        config = get_config(write(tmp_path, {"input_size": size, "patch_size": 4}))
        got = config.TRAIN.CROP, config.TRAIN.CROP_PADDING, config.DATA.CROP_PCT
        assert got == (crop, 4, share)


def test_training_keys(tmp_path):
    given = {
        "epochs": 30,
        "lr": 1e-3,
        "warmup_epochs": 2,
        "min_lr": 1e-6,
        "clip_grad": 1.0,
        "opt_betas": None,
        "drop_path": 0.2,
        "smoothing": 0.0,
        "mixup": 0,
        "cutmix_minmax": [0.2, 0.8],
        "repeated_aug": False,
        "data_set": "CIFAR",
        "data_path": "cifar",
        "finetune": "w.pth",
        "opt": "adamw",
    }
    config = get_config(write(tmp_path, given))
    train = config.TRAIN
    assert (train.NUM_EPOCHS, train.BASE_LR, train.WARMUP_EPOCHS, train.END_LR) == (30, 1e-3, 2.0, 1e-6)
    assert (train.GRAD_CLIP, train.OPTIMIZER.BETAS, train.OPTIMIZER.NAME) == (1.0, [0.9, 0.999], "AdamW")
    assert (train.SMOOTHING, train.MIXUP_ALPHA, train.CUTMIX_MINMAX, train.REPEATED_AUG) == (0.0, 0.0, [0.2, 0.8], 1)
    assert (config.MODEL.DROPPATH, config.MODEL.PRETRAINED) == (0.2, "w.pth")
    assert (config.DATA.DATASET, config.DATA.DATA_PATH) == ("cifar100", "cifar")


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (
            {**S2, "num_head": 3},
            ConfigKeyError,
            "hvt.json:15: there is no key 'num_head' (official HVT); the nearest one is",
        ),
        ({"model": "deit_tiny"}, ConfigError, "hvt.json:2: model must be one of hvt_model, got 'deit_tiny'"),
        ({"aa": "v0"}, ConfigError, "aa must be one of rand-m9-mstd0.5-inc1, got 'v0'"),
        ({"repeated_aug": "many"}, ConfigError, "repeated_aug must be one of true, false, got 'many'"),
        ({"num_heads": 1.5}, ConfigTypeError, "hvt.json: num_heads must be an integer, got '1.5'"),
        ({"head_dim": "x"}, ConfigTypeError, "hvt.json: head_dim must be an integer, got 'x'"),
        ({"num_blocks": "x"}, ConfigTypeError, "hvt.json:2: MODEL.DEPTH must be an integer, got 'x'"),
        ('{"lr": 1, "lr": 2}', ConfigError, "hvt.json:1: 'lr' is given twice, first in line 1"),
        ('{"lr": 1', ConfigError, "hvt.json:1: "),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, content, error, said):
    with pytest.raises(error) as caught:
        get_config(write(tmp_path, content))
    assert said in str(caught.value)


def test_a_json_with_our_keys_is_ours(tmp_path):
    assert get_config(write(tmp_path, {"MODEL": {"TYPE": "pit"}, "SEED": 3})).SEED == 3
