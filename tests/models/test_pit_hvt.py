"""PiT and HVT: golden numbers, names, shapes at any size, initialisation, drop-path schedules."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from golden import cases, golden_images, golden_state, info, manifest, reference, tolerance
from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.hvt import HVT
from paddlevit.layers import DropPath
from paddlevit.pit import PiT

# Its logits take 24 s, and the tests of the weights compute them.
SLOW = "pit_b_distilled_384"
VARIANTS = [name for name, fmt in cases() if fmt == "paddlevit" and name.startswith(("pit", "hvt", "scale"))]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    paddle.set_default_dtype(request.param)
    yield request.param
    paddle.set_default_dtype("float32")


@pytest.mark.parametrize(
    "name", [n for n, fmt in cases(logits=True) if n in VARIANTS and fmt == "paddlevit" and n != SLOW]
)
def test_golden_logits(name, dtype):
    model = build_model(get_config(name))
    state = golden_state(name, "paddlevit")
    model.set_state_dict({key: value.astype(dtype) for key, value in state.items()})
    images = paddle.to_tensor(golden_images(0, info(name)["batch"], info(name)["image_size"]).astype(dtype))
    expected, limit = reference(name, "paddlevit"), tolerance(name, "paddlevit")[dtype]
    with paddle.no_grad():
        model.train()
        for module in model.sublayers():
            if isinstance(module, DropPath):
                module.rate = 0.0
        if "train_cls_f64" in expected:
            for ours, key in zip(model(images), ("train_cls_f64", "train_dist_f64")):
                np.testing.assert_allclose(ours.numpy(), expected[key], rtol=0, atol=2 * limit)
        model.eval()
        np.testing.assert_allclose(model(images).numpy(), expected["logits_f64"], rtol=0, atol=limit)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_parameters(name):
    model = build_model(get_config(name))
    theirs = {key: shape for key, shape, _, _ in manifest(name, "paddlevit")["entries"]}
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == theirs
    assert sum(param.size for param in model.parameters()) == info(name)["params"]


@pytest.mark.parametrize(
    ("cfg", "size"),
    [("pit_ti_224", 96), ("pit_ti_distilled_224", 65), ("hvt_ti_1_patch16_224", 100), ("pit_digits", 7)],
)
def test_any_size_class_number_and_batch_of_one(cfg, size):
    config = get_config(cfg, ["DATA.IMAGE_SIZE", size, "MODEL.NUM_CLASSES", 3])
    model = build_model(config)
    model.eval()
    images = paddle.randn([1, 3, size, size])
    assert model(images).shape == [1, 3]
    bare = build_model(get_config(cfg, ["DATA.IMAGE_SIZE", size, "MODEL.NUM_CLASSES", 0]))
    bare.eval()
    assert bare.forward_features(images).shape[0] == 1
    assert bare(images).shape[-1] == bare.norm.weight.shape[0]


def test_distilled_pit_returns_both_heads_in_training_and_their_mean_in_evaluation():
    model = build_model(get_config("pit_digits", ["MODEL.DISTILLED", True, "MODEL.DROPPATH", 0.0]))
    images = paddle.randn([2, 3, 32, 32])
    model.train()
    logits, distill_logits = model(images)
    model.eval()
    np.testing.assert_allclose(model(images).numpy(), ((logits + distill_logits) / 2).numpy(), atol=1e-6)
    assert model.forward_features(images).shape[1] == 2


@pytest.mark.parametrize(
    ("cfg", "opts", "said"),
    [
        ("pit_ti_224", ["DATA.IMAGE_SIZE", 15], ["DATA.IMAGE_SIZE must be at least MODEL.PATCH_SIZE 16, got 15"]),
        (
            "pit_ti_224",
            ["MODEL.DEPTH", [2, 6]],
            ["MODEL.BASE_DIMS, MODEL.DEPTH and MODEL.NUM_HEADS", "equal length", "[2, 6]"],
        ),
        ("hvt_ti_1_patch16_224", ["DATA.IMAGE_SIZE", 8], ["DATA.IMAGE_SIZE", "PATCH_SIZE 16"]),
        (
            "hvt_s4_patch16_224",
            ["DATA.IMAGE_SIZE", 48],
            ["MODEL.POOL_KERNEL_SIZE must be at most", "tokens", "larger DATA.IMAGE_SIZE"],
        ),
        (
            "hvt_s1_patch16_224",
            ["MODEL.NUM_HEADS", 5],
            ["MODEL.EMBED_DIM must be a multiple of MODEL.NUM_HEADS 5, got 384"],
        ),
        ("hvt_s1_patch16_224", ["MODEL.MLP_RATIO", 0.001], ["MODEL.MLP_RATIO must be at least 1/384"]),
        ("pit_ti_224", ["MODEL.BASE_DIMS", [48, 48, 50]], ["MODEL.BASE_DIMS x MODEL.NUM_HEADS", "multiple", "400"]),
    ],
)
def test_impossible_networks_are_named(cfg, opts, said):
    with pytest.raises(UserError) as caught:
        build_model(get_config(cfg, opts))
    assert all(part in str(caught.value) for part in said), caught.value


def test_classes_name_arguments_not_keys():
    with pytest.raises(UserError, match="^image_size must be at least patch_size 16, got 8$"):
        HVT(8)
    with pytest.raises(UserError, match="^base_dims, depth and num_heads must be lists of equal length"):
        PiT(depth=(1, 2))


def rates(model):
    return [module.rate for module in model.sublayers() if isinstance(module, DropPath)]


def test_drop_path_schedules_are_the_official_ones():
    pit = build_model(get_config("pit_ti_224"))
    assert rates(pit) == pytest.approx([0.1 * i / 12 for i in range(12)])
    hvt = build_model(get_config("hvt_ti_1_patch16_224"))
    assert rates(hvt) == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_initialisation_of_pit_is_torchs_default():
    model = build_model(get_config("pit_s_224"))
    for layer in (model.transformers[1].blocks[0].mlp.fc1, model.pools[0].fc, model.head):
        bound = layer.weight.shape[0] ** -0.5
        assert layer.weight.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert layer.bias.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.15)
    for conv in (model.patch_embed.conv, model.pools[0].conv):
        bound = float(np.prod(conv.weight.shape[1:])) ** -0.5
        assert conv.weight.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.06)
        assert np.abs(conv.bias.numpy()).max() > 0
    assert model.pos_embed.numpy().std() == pytest.approx(0.02, rel=0.03)
    assert model.cls_token.numpy().std() == pytest.approx(0.02, rel=0.3)


def test_initialisation_of_hvt_is_truncated_normal():
    model = build_model(get_config("hvt_s1_patch16_224"))
    for layer in (model.layers[0].attn.qkv, model.layers[5].mlp.fc2, model.head):
        assert layer.weight.numpy().std() == pytest.approx(0.02, rel=0.03)
        assert not layer.bias.numpy().any()
    conv = model.patch_embed.proj
    assert conv.weight.numpy().std() == pytest.approx((3 * 16 * 16 * 3) ** -0.5, rel=0.03)
    assert model.layers[0].pos_embed.numpy().std() == pytest.approx(0.02, rel=0.05)


def test_hvt_is_scaled_by_configuration_alone():
    opts = ["DATA.IMAGE_SIZE", 64, "MODEL.PATCH_SIZE", 8, "MODEL.EMBED_DIM", 40, "MODEL.NUM_HEADS", 5, "MODEL.DEPTH", 5]
    opts += ["MODEL.POOL_KERNEL_SIZE", 5, "MODEL.POOL_STRIDE", 3, "MODEL.POOL_BLOCK_WIDTH", 2]
    state = build_model(get_config("hvt_s1_patch16_224", opts)).state_dict()
    lengths = {key: value.shape[1] for key, value in state.items() if key.endswith("pos_embed")}
    assert lengths == {"pos_embed": 64, "layers.0.pos_embed": 20, "layers.2.pos_embed": 6, "layers.4.pos_embed": 1}
