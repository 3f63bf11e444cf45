"""CvT: running statistics of a first step, PaddleViT's yaml, attention, dropout."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from golden import from_zeros, golden_images, golden_state, training
from paddlevit.config import ConfigError, get_config
from paddlevit.cvt import CvT, build_cvt
from paddlevit.cvt.model import StageSpec
from paddlevit.weights import load_weights


@pytest.fixture
def float64():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def small_cvt(num_classes=7, **options):
    """Three stages on 32 x 32 pictures: maps of 8, 4 and 2 places a side."""
    values = {
        "patch_size": (7, 3, 3),
        "patch_stride": (4, 2, 2),
        "patch_padding": (2, 1, 1),
        "dim_embed": (8, 16, 24),
        "num_heads": (1, 2, 3),
        "depth": (1, 2, 3),
        "cls_token": (False, False, True),
        "drop_path_rate": (0.0, 0.0, 0.1),
        **options,
    }
    stages = [StageSpec(**{key: value[i] for key, value in values.items()}) for i in range(3)]
    return CvT(stages=stages, num_classes=num_classes)


@pytest.mark.slow
def test_first_forward_in_training(float64):
    """Loss and running statistics; gradients and optimizer steps of this run are in test_golden_training.py."""
    golden = training("cvt-13-224x224")
    with from_zeros():
        model = build_cvt(get_config("cvt-13-224x224", ["MODEL.DROP_PATH_RATE", [0.0, 0.0, 0.0]]))
    load_weights(model, golden_state("cvt-13-224x224", "official"), source="official")
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    model.train()
    images = paddle.to_tensor(golden_images(0, golden["batch"], golden["image_size"]).astype("float64"))
    with paddle.no_grad():
        loss = F.cross_entropy(model(images), paddle.to_tensor(golden["labels"]))
    assert loss.item() == pytest.approx(golden["losses_f64"][0], rel=0, abs=golden["tolerance"]["f64_losses_abs"])
    for name, value in model.state_dict().items():
        if not name.endswith(("._mean", "._variance")):
            continue
        after = value.numpy()
        if name.endswith("._variance"):
            # torch keeps the variance over n - 1 values, Paddle that over n.
            side = {"0": 56, "1": 28, "2": 14}[name.split(".")[1]] // (1 if "conv_proj_q" in name else 2)
            n = golden["batch"] * side**2
            after = 0.9 * before[name] + (after - 0.9 * before[name]) * n / (n - 1)
        official = name.replace("stages.", "stage").replace(".1._mean", ".bn.running_mean")
        official = official.replace(".1._variance", ".bn.running_var")
        expected = golden["batchnorm_norms_after_first_forward_f64"][official]
        assert np.linalg.norm(after) == pytest.approx(expected, rel=1e-6), name


def test_yaml_file_with_paddlevits_keys(tmp_path):
    path = tmp_path / "their.yaml"
    path.write_text(
        "DATA: {IMAGE_SIZE: 224, CROP_PCT: 0.875}\n"
        "MODEL: {TYPE: CvT, NAME: CvT-21-224, NUM_CLASSES: 1000, NUM_STAGES: 3, PATCH_SIZE: [7, 3, 3],\n"
        "  PATCH_STRIDE: [4, 2, 2], PATCH_PADDING: [2, 1, 1], DIM_EMBED: [64, 192, 384], NUM_HEADS: [1, 3, 6],\n"
        "  DEPTH: [1, 4, 16], ATTN_DROP_RATE: [0.0, 0.0, 0.0], DROP_RATE: [0.0, 0.0, 0.0],\n"
        "  DROP_PATH_RATE: [0.0, 0.0, 0.1], CLS_TOKEN: [False, False, True]}\n"
        "TRAIN: {BASE_LR: 1.25e-4, WARMUP_START_LR: 1e-6, LINEAR_SCALED_LR: 128}\n"
    )
    theirs, ours = get_config(path).MODEL, get_config("cvt-21-224x224").MODEL
    assert {**theirs, "NAME": ""} == {**ours, "NAME": ""}


def test_without_class_token_the_head_sees_the_mean():
    model = small_cvt(cls_token=(False, False, False), num_classes=0)
    model.eval()
    maps = []
    model.stages[2].register_forward_post_hook(lambda layer, inputs, outputs: maps.append(outputs[0].numpy()))
    features = model(paddle.randn([2, 3, 40, 24])).numpy()
    tokens = maps[0].reshape(2, 24, -1)
    tokens = (tokens - tokens.mean(1, keepdims=True)) / np.sqrt(tokens.var(1, keepdims=True) + 1e-5)
    assert maps[0].shape == (2, 24, 3, 2)
    np.testing.assert_allclose(features, tokens.mean(2), atol=1e-5)


def test_attention_probabilities_can_be_taken_out():
    model = small_cvt()
    model.eval()
    probs = []
    for stage in model.stages:
        for block in stage.blocks:
            block.attn.attn_dropout.register_forward_post_hook(
                lambda layer, inputs, output: probs.append(output.numpy())
            )
    model(paddle.randn([2, 3, 32, 48]))
    # Maps of 8 x 12, 4 x 6 and 2 x 3 places; keys from every second one in both directions; one class token at the end.
    shapes = [(2, 1, 96, 24)] + 2 * [(2, 2, 24, 6)] + 3 * [(2, 3, 7, 3)]
    assert [p.shape for p in probs] == shapes
    for p in probs:
        np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-5)


def test_dropout_rates_reach_their_layers():
    model = small_cvt(drop_rate=(0.1, 0.2, 0.3), attn_drop_rate=(0.4, 0.5, 0.6))
    for stage, rate, attn_rate in zip(model.stages, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)):
        for name, layer in stage.named_sublayers():
            if isinstance(layer, paddle.nn.Dropout):
                assert layer.p == (attn_rate if name.endswith("attn_dropout") else rate), name


@pytest.mark.slow
def test_the_activation_is_quickgelu_or_the_gelu_of_transformers():
    """With the same weights the logits of the two differ by 0.04 to 0.06 (measured with both projects' code)."""
    images = paddle.to_tensor(golden_images(0, 1, 224))
    logits = {}
    for name in ("quickgelu", "gelu"):
        with from_zeros():
            model = build_cvt(get_config("cvt-13-224x224", ["MODEL.ACT", name]))
        model.eval()
        report = load_weights(model, golden_state("cvt-13-224x224", "hf"))
        assert "MODEL.ACT quickgelu" in str(report)
        logits[name] = model(images).numpy()
    assert 0.03 < np.abs(logits["gelu"] - logits["quickgelu"]).max() < 0.08
    mlp, x = model.stages[2].blocks[9].mlp, paddle.randn([2, 5, 384])
    np.testing.assert_allclose(mlp(x).numpy(), mlp.fc2(F.gelu(mlp.fc1(x))).numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="MODEL.ACT must be one of quickgelu, gelu, got 'relu'"):
        get_config("cvt-13-224x224", ["MODEL.ACT", "relu"])
