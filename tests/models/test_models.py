"""What holds for every family: official logits, names and shapes, any image size, features, errors about keys."""

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

VARIANTS = list(dict.fromkeys(name for name, _ in cases()))
# A small member of each family.
SMALL = {
    "pit_digits": [],
    "hvt_digits": [],
    "cvt-13-224x224": ["MODEL.DIM_EMBED", [8, 16, 24], "MODEL.NUM_HEADS", [1, 2, 3], "MODEL.DEPTH", [1, 2, 3]],
    "hrformer_digits": [],
    "regnety_160": ["MODEL.WIDTHS", [24, 56, 152, 368], "MODEL.DEPTHS", [1, 1, 4, 7], "MODEL.GROUP_WIDTH", 8],
}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    paddle.set_default_dtype(request.param)
    yield request.param
    paddle.set_default_dtype("float32")


def without_drop_path(model):
    for layer in model.sublayers():
        if isinstance(layer, DropPath):
            layer.rate = 0.0
    return model


def our_entries(name):
    """Names and shapes, and how to turn an array: PaddleViT's, which are ours; of HRFormer the official ones."""
    if not name.startswith("hrt"):
        entries = [(key, key, list(shape), False) for key, shape, _, _ in manifest(name, "paddlevit")["entries"]]
        # A bias before a normalisation, which the official network does not have.
        return [entry for entry in entries if not (name == "regnety_160" and entry[0].endswith(".conv3.bias"))]
    entries = []
    for key, shape, _, _ in manifest(name, "official")["entries"]:
        if not key.endswith(("num_batches_tracked", "relative_position_index")):
            linear = len(shape) == 2 and not key.endswith("relative_position_bias_table")
            ours = key.replace("running_mean", "_mean").replace("running_var", "_variance")
            entries.append((ours, key, list(shape[::-1] if linear else shape), linear))
    return entries


@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_parameters(name, quick_start):
    model = build_model(get_config(name))
    expected = {ours: shape for ours, _, shape, _ in our_entries(name)}
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    assert sum(param.size for param in model.parameters() if not param.stop_gradient) == info(name)["params"]


@pytest.mark.parametrize("name", ["pit_ti_distilled_224", "hvt_ti_1_patch16_224", "cvt-13-224x224", "hrt_tiny"])
def test_golden_logits_by_set_state_dict(name, dtype):
    """Without the loader, whose tests have all variants and formats."""
    fmt = "official" if name.startswith("hrt") else "paddlevit"
    model, state = without_drop_path(build_model(get_config(name))), golden_state(name, fmt)
    arrays = {ours: state[key].T if linear else state[key] for ours, key, _, linear in our_entries(name)}
    missing, unexpected = model.set_state_dict({key: value.astype(dtype) for key, value in arrays.items()})
    assert (missing, unexpected) == ([], [])
    images = paddle.to_tensor(golden_images(0, info(name)["batch"], info(name)["image_size"]).astype(dtype))
    expected, limit = reference(name, fmt), tolerance(name, fmt)[dtype]
    with paddle.no_grad():
        if "train_cls_f64" in expected:
            for ours, key in zip(model(images), ("train_cls_f64", "train_dist_f64")):
                np.testing.assert_allclose(ours.numpy(), expected[key], rtol=0, atol=2 * limit)
        model.eval()
        np.testing.assert_allclose(model(images).numpy(), expected["logits_f64"], rtol=0, atol=limit)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("pit_digits", [(7, 7), (65, 65)]),
        ("hvt_digits", [(50, 50)]),
        ("cvt-13-224x224", [(32, 32), (33, 47), (64, 20), (3, 3)]),
        ("hrformer_digits", [(32, 32), (70, 33), (1, 1)]),
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
    assert not any(key.startswith(model.head_prefixes) for key in model.state_dict())
    features = model(images)
    assert features.ndim == 2 and features.shape[0] == 2
    np.testing.assert_array_equal(features.numpy(), model.forward_features(images).numpy())


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
