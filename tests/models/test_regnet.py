"""RegNetY-160: golden numbers, the published file with its extra biases, initialisation, other members."""

from __future__ import annotations

from unittest import mock

import numpy as np
import paddle
import pytest

from golden import golden_images, golden_state, info, reference, tolerance
from paddlevit.config import get_config
from paddlevit.regnet import RegNet, build_regnet
from paddlevit.weights import load_weights

NAME = "regnety_160"


@pytest.fixture(scope="module")
def model():
    """The network in float64, built once and from zeros; the tests of the weights have it in float32."""
    paddle.set_default_dtype("float64")
    paddle.nn.initializer.set_global_initializer(paddle.nn.initializer.Constant(0.0))
    with mock.patch.object(paddle.nn.Layer, "apply", lambda self, function: self):
        model = build_regnet(get_config(NAME))
    paddle.nn.initializer.set_global_initializer(None)
    paddle.set_default_dtype("float32")
    model.eval()
    return model


def assert_golden(model, fmt, key):
    images = paddle.to_tensor(golden_images(0, info(NAME)["batch"], info(NAME)["image_size"]).astype("float64"))
    with paddle.no_grad():
        logits = model(images).numpy()
    np.testing.assert_allclose(logits, reference(NAME, fmt)[key], rtol=0, atol=tolerance(NAME, fmt)["float64"])


@pytest.mark.slow
def test_paddlevits_file_loads_as_it_is(model):
    """Plain `set_state_dict` leaves the biases out, which are zero in the published file."""
    state = golden_state(NAME, "paddlevit")
    missing, unexpected = model.set_state_dict({key: value.astype("float64") for key, value in state.items()})
    assert missing == []
    assert len(unexpected) == 18
    assert all(key.endswith(".conv3.bias") for key in unexpected)
    assert_golden(model, "paddlevit", "logits_conv3_bias_zero_f64")


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["paddlevit", "timm"])
def test_golden_logits(model, fmt):
    """Through the loader, which folds biases that are not zero into the normalisation."""
    load_weights(model, golden_state(NAME, fmt), source=fmt)
    assert_golden(model, fmt, "logits_f64")


def regnety_200mf(**options):
    """RegNetY-200MF, whose published size is 3.2 M parameters."""
    return RegNet(widths=(24, 56, 152, 368), depths=(1, 1, 4, 7), group_width=8, **options)


def test_another_member_of_the_family():
    params = sum(param.size for param in regnety_200mf().parameters() if not param.stop_gradient)
    assert round(params / 1e6, 1) == 3.2


def test_initialisation():
    paddle.seed(0)
    model = regnety_200mf()
    for name, layer in model.named_sublayers():
        if isinstance(layer, paddle.nn.Conv2D):
            out_channels, _, height, width = layer.weight.shape
            groups = out_channels // 8 if name.endswith("conv2") else 1
            std = (2 / (height * width * out_channels / groups)) ** 0.5
            assert layer.weight.numpy().std() == pytest.approx(std, rel=5 / layer.weight.size**0.5), name
            assert layer.bias is None or not layer.bias.numpy().any()
        elif isinstance(layer, paddle.nn.BatchNorm2D):
            assert (layer.weight.numpy() == (0.0 if name.endswith("bn3") else 1.0)).all(), name
    assert model.head[2].weight.numpy().std() == pytest.approx(0.01, rel=0.02)
    assert not model.head[2].bias.numpy().any()
