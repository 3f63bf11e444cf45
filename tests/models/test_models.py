"""What holds for every family: official logits, names and shapes, any image size, features, initial values, drop path,
errors about keys."""

from __future__ import annotations

import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from tiny import but_slow

from golden import (
    cases,
    checksum,
    empty_network,
    from_zeros,
    golden_images,
    golden_state,
    images_checksum,
    info,
    names_and_shapes,
    reference,
    tolerance,
)
from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.hvt import HVT
from paddlevit.layers import DropPath
from paddlevit.models import Model
from paddlevit.pit import PiT
from paddlevit.weights import load_weights

VARIANTS = list(dict.fromkeys(name for name, _ in cases()))
# A small member of each family.
SMALL = {
    "pit_digits": [],
    "hvt_digits": [],
    "cvt-13-224x224": ["MODEL.DIM_EMBED", [8, 16, 24], "MODEL.NUM_HEADS", [1, 2, 3], "MODEL.DEPTH", [1, 2, 3]],
    "hrformer_digits": [],
    "regnety_160": ["MODEL.WIDTHS", [24, 56, 152, 368], "MODEL.DEPTHS", [1, 1, 4, 7], "MODEL.GROUP_WIDTH", 8],
}


def golden_logits():
    """Every checkpoint format that has reference logits in float64, and each model's first one in float32.

    The formats of a model follow each other; loading them is the same in both precisions.
    """
    for name in VARIANTS:
        formats, macs = [fmt for model, fmt in cases(logits=True) if model == name], info(name)["macs_g"]
        for dtype, compared in (("float32", formats[:1]), ("float64", formats)):
            for fmt in compared:
                slow = macs > (3 if dtype == "float32" else 1)
                yield pytest.param(name, fmt, dtype, marks=[pytest.mark.slow] * slow)


def test_the_generated_weights_and_images_are_those_of_the_reference():
    """A NumPy whose random stream differs would fail here first."""
    for name, fmt in cases(logits=True):
        if info(name)["params"] < 6e6 or fmt == "hf" and info(name)["params"] < 21e6:
            assert checksum(golden_state(name, fmt)) == info(name)["formats"][fmt]["state_crc32"]
    assert checksum({"x": golden_images(0, 2, 224)}) == images_checksum(0, 2, 224)
    assert checksum({"x": golden_images(0, 2, 384)}) == images_checksum(0, 2, 384)


@pytest.fixture(scope="module")
def last_network():
    return {}


@pytest.mark.parametrize(("name", "fmt", "dtype"), list(golden_logits()))
def test_golden_logits(last_network, name, fmt, dtype):
    """One image shows as much as two and takes half the time."""
    if (name, dtype) not in last_network:
        last_network.clear()
        last_network[name, dtype] = empty_network(name, dtype)
    model = last_network[name, dtype]
    report = load_weights(model, golden_state(name, fmt))
    assert report.source == fmt
    assert len(report.loaded) == len(model.state_dict())
    images = golden_images(0, info(name)["batch"], info(name)["image_size"])[:1]
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images.astype(dtype))).numpy()
    expected = reference(name, fmt)["logits_f64"][:1]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(name, fmt)[dtype])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (info(name)["params"] > 1e8)) for name in VARIANTS]
)
def test_names_shapes_and_parameters(name):
    model = empty_network(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == names_and_shapes(name)
    assert sum(param.size for param in model.parameters() if not param.stop_gradient) == info(name)["params"]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("pit_digits", [(7, 7), (65, 65)]),
        ("hvt_digits", [(50, 50)]),
        ("cvt-13-224x224", [(32, 32), (33, 47), (64, 20), (3, 3)]),
        pytest.param("hrformer_digits", [(32, 32), (70, 33), (1, 1)], marks=pytest.mark.slow),
        ("regnety_160", [(64, 64), (33, 70), (1, 1)]),
    ],
)
def test_images_of_any_size_alone_and_in_a_batch(name, sizes):
    for size in sizes:
        model = build_model(get_config(name, [*SMALL[name], "MODEL.NUM_CLASSES", 3, "DATA.IMAGE_SIZE", size[0]]))
        model.eval()
        images = paddle.randn([3, 3, *size])
        logits = model(images).numpy()
        assert logits.shape == (3, 3)
        np.testing.assert_allclose(model(images[1:2]).numpy(), logits[1:2], atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_model_that_is_cast_computes_the_same(name):
    model = build_model(get_config(name, [*SMALL[name], "DATA.IMAGE_SIZE", 32]))
    model.eval()
    images = paddle.randn([2, 3, 32, 32])
    logits = model(images).numpy()
    model.to(dtype="float64")
    np.testing.assert_allclose(model(images.astype("float64")).numpy(), logits, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_without_classes_the_features_come_out(name):
    model = build_model(get_config(name, [*SMALL[name], "MODEL.NUM_CLASSES", 0, "DATA.IMAGE_SIZE", 32]))
    model.eval()
    images = paddle.randn([2, 3, 32, 32])
    assert isinstance(model, Model) and not isinstance(nn.Linear(1, 1), Model)
    assert not any(key.startswith(model.head_prefixes) for key in model.state_dict())
    features = model(images)
    assert features.ndim == 2 and features.shape[0] == 2
    np.testing.assert_array_equal(features.numpy(), model.forward_features(images).numpy())


def constant(value):
    return {"mean": value, "std": 0.0, "bound": abs(value)}


def normal(std):
    return {"mean": 0.0, "std": std, "bound": 7 * std}


def uniform(bound):
    return {"mean": 0.0, "std": bound / 3**0.5, "bound": bound}


def like_torch(layer):
    fan_in = layer.weight.shape[0] if isinstance(layer, nn.Linear) else np.prod(layer.weight.shape[1:])
    return uniform(fan_in**-0.5), uniform(fan_in**-0.5)


def truncated(layer):
    return normal(0.02), constant(0.0)


def as_published(layer):
    """He et al. 2015, equation 14, by the outputs; RegNetY's 3 x 3 convolutions are in groups of 8."""
    channels, inputs, *kernel = layer.weight.shape
    groups = channels // 8 if inputs == 8 and kernel == [3, 3] else 1
    return normal((2 * groups / (channels * np.prod(kernel))) ** 0.5), constant(0.0)


# Weights and biases of linear layers and of convolutions.
INITIAL = {
    "pit_ti_224": (like_torch, like_torch),
    "hvt_ti_1_patch16_224": (truncated, like_torch),
    "cvt-13-224x224": (truncated, like_torch),
    "hrt_tiny": (like_torch, like_torch),
    "regnety_160": (lambda layer: (normal(0.01), constant(0.0)), as_published),
}


@pytest.mark.parametrize("name", but_slow(INITIAL, "cvt-13-224x224"))
def test_initial_values(name):
    paddle.seed(0)
    linear, conv = INITIAL[name]
    model = build_model(get_config(name, SMALL[name] if name == "regnety_160" else []))
    for path, layer in model.named_sublayers(include_self=True):
        weight = bias = normal(0.02)  # tokens, position embeddings, tables of relative positions
        if isinstance(layer, (nn.LayerNorm, nn.BatchNorm2D)):
            last_of_a_block = name == "regnety_160" and path.endswith("bn3")
            weight, bias = constant(0.0 if last_of_a_block else 1.0), constant(0.0)
        elif isinstance(layer, (nn.Linear, nn.Conv2D)):
            weight, bias = (linear if isinstance(layer, nn.Linear) else conv)(layer)
        for leaf, param in layer.named_parameters(include_sublayers=False):
            if not leaf.startswith("_"):  # running statistics
                assert_drawn_from(bias if leaf == "bias" else weight, param.numpy().astype("float64"), f"{path}.{leaf}")


def assert_drawn_from(distribution, values, path):
    mean, std, bound = distribution.values()
    values = values[np.abs(values) != 2]  # the cut of a truncated normal, one of some 10^8 draws in Paddle and PyTorch
    assert np.abs(values).max() <= bound * (1 + 1e-6), path
    assert abs(values.mean() - mean) <= 6 * std / values.size**0.5 + 1e-9, path
    assert values.std() == pytest.approx(std, rel=5 / values.size**0.5), path


RATES = [
    ("pit_ti_224", [], [0.1 * i / 12 for i in range(12)]),
    ("hvt_ti_1_patch16_224", [], [0.1 * i / 11 for i in range(12)]),
    (
        "cvt-13-224x224",
        ["MODEL.DROP_PATH_RATE", [0.3, 0.1, 0.2]],  # from 0 in every stage
        [0.0, *(0.1 * i for i in range(2)), *(0.2 * i / 9 for i in range(10))],
    ),
    # Over the blocks, alike in all branches of a module.
    ("hrt_base", [], [0.2 * (2 * i + j) / 13 for i, n in enumerate((2, 3, 3, 3, 3, 4, 4)) for j in [0, 1] * n]),
    ("hrt_small", [], [0.0] * (2 * (2 + 4 * 3 + 2 * 4))),
    ("regnety_160", [], []),
]


@pytest.mark.parametrize(("name", "opts", "rates"), RATES)
def test_drop_path_rates(name, opts, rates):
    with from_zeros():
        model = build_model(get_config(name, opts))
    assert [layer.rate for layer in model.sublayers() if isinstance(layer, DropPath)] == pytest.approx(rates)


@pytest.mark.parametrize(("name", "no"), [("hvt_digits", False), ("cvt_digits", [False] * 3)])
def test_no_bias_where_none_is_asked_for(name, no):
    found = []
    for opts in ([], ["MODEL.QKV_BIAS", no]):
        names = build_model(get_config(name, opts)).state_dict()
        found.append([key for key in names if re.search(r"\.(qkv|proj_[qkv])\.bias$", key)])
    assert found[0] and not found[1]


@pytest.mark.parametrize("name", ["pit_digits", "hvt_digits", "cvt_digits"])
def test_fused_attention_is_the_plain_one(name, monkeypatch):
    """Paddle's fused kernel takes another layout, and no scale; on a CPU it is never chosen."""
    model, images = build_model(get_config(name)), paddle.randn([2, 3, 32, 32])
    model.eval()
    expected, fused, calls = model(images).numpy(), F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kw: calls.append(1) or fused(*args, **kw))
    for module in ("layers", "cvt.model"):
        monkeypatch.setattr(f"paddlevit.{module}.has_flash_attention", lambda *args: True)
    np.testing.assert_allclose(model(images).numpy(), expected, atol=1e-5)
    assert calls


@pytest.mark.parametrize(
    ("name", "opts", "said"),
    [
        ("pit_ti_224", ["DATA.IMAGE_SIZE", 15], ["DATA.IMAGE_SIZE must be at least MODEL.PATCH_SIZE 16, got 15"]),
        ("pit_ti_224", ["MODEL.DEPTH", [2, 6]], ["MODEL.BASE_DIMS, MODEL.DEPTH and MODEL.NUM_HEADS", "[2, 6]"]),
        ("pit_ti_224", ["MODEL.BASE_DIMS", [48, 48, 50]], ["MODEL.BASE_DIMS x MODEL.NUM_HEADS", "multiple", "400"]),
        ("hvt_ti_1_patch16_224", ["DATA.IMAGE_SIZE", 8], ["DATA.IMAGE_SIZE", "PATCH_SIZE 16"]),
        ("hvt_s4_patch16_224", ["DATA.IMAGE_SIZE", 48], ["MODEL.POOL_KERNEL_SIZE must be", "larger DATA.IMAGE_SIZE"]),
        ("hvt_s1_patch16_224", ["MODEL.NUM_HEADS", 5], ["MODEL.EMBED_DIM must be a multiple of MODEL.NUM_HEADS 5"]),
        ("hvt_s1_patch16_224", ["MODEL.MLP_RATIO", 0.001], ["MODEL.MLP_RATIO must be at least 1/384"]),
        ("cvt-13-224x224", ["MODEL.DEPTH", [1, 2]], ["MODEL.DEPTH must have one entry per stage", "3, got [1, 2]"]),
        ("cvt-13-224x224", ["MODEL.NUM_STAGES", 2], ["one entry per stage", "NUM_STAGES 2", "[7, 3, 3]"]),
        ("cvt-13-224x224", ["MODEL.NUM_HEADS", [1, 3, 5]], ["MODEL.DIM_EMBED must be", "MODEL.NUM_HEADS 5, got 384"]),
        ("cvt-13-224x224", ["MODEL.STRIDE_Q", [1, 2, 1]], ["MODEL.STRIDE_Q must be 1", "MODEL.STRIDE_Q 2"]),
        ("cvt-13-224x224", ["MODEL.KERNEL_QKV", [3, 3, 5]], ["KERNEL_QKV 5", "PADDING_Q 1"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE3.NUM_BLOCKS", [2, 2]], ["MODEL.HRT.STAGE3.NUM_BLOCKS", "3 positive numbers"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE2.NUM_BRANCHES", 3], ["MODEL.HRT.STAGE2.NUM_BRANCHES must be 2, got 3"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE2.NUM_MODULES", 0], ["STAGE2", "at least 1"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE4.NUM_HEADS", [1, 2, 5, 8]], ["STAGE4", "a multiple of its NUM_HEADS 5"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE4.NUM_WINDOW_SIZES", [7, 7, 7, 0]], ["STAGE4", "4 positive numbers"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE2.ATTN_TYPES", [[["conv", "isa_local"]]]], ["STAGE2", "isa_local"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE2.FFN_TYPES", [[["identity"]]]], ["STAGE2", "conv_mlp"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE1.BLOCK", "TRANSFORMER_BLOCK"], ["STAGE1", "BOTTLENECK"]),
        ("hrt_tiny", ["MODEL.HRT.STAGE1.NUM_BLOCKS", [0]], ["STAGE1", "one positive number"]),
        (
            "regnety_160",
            ["MODEL.WIDTHS", [224, 450]],
            ["MODEL.WIDTHS and MODEL.DEPTHS must be", "450] and [2, 4,"],
        ),
        ("regnety_160", ["MODEL.GROUP_WIDTH", 100], ["MODEL.WIDTHS must be multiples of MODEL.GROUP_WIDTH 100, got ["]),
    ],
)
def test_impossible_models_are_named_by_their_keys(name, opts, said):
    with pytest.raises(UserError) as caught:
        build_model(get_config(name, opts))
    assert all(part in str(caught.value) for part in said), caught.value


def test_classes_name_arguments():
    with pytest.raises(UserError, match="^image_size must be at least patch_size 16, got 8$"):
        HVT(8)
    with pytest.raises(UserError, match="^base_dims, depth and num_heads must be lists of equal length"):
        PiT(depth=(1, 2))


@pytest.mark.skipif(paddle.__version__ < "3.1", reason="this Paddle's convolution refuses an empty batch")
@pytest.mark.parametrize("name", SMALL)
def test_no_images_have_no_logits(name):
    model = build_model(get_config(name, [*SMALL[name], "MODEL.NUM_CLASSES", 3, "DATA.IMAGE_SIZE", 32]))
    model.eval()
    with paddle.no_grad():
        assert model(paddle.zeros([0, 3, 32, 32])).shape == [0, 3]
