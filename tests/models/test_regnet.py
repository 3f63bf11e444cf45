"""RegNetY-160: golden numbers, names, the published file with its extra biases, initialisation, other members."""

from __future__ import annotations

from unittest import mock

import numpy as np
import paddle
import pytest

from golden import golden_images, golden_state, info, manifest, reference, tolerance
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.regnet import RegNet, build_regnet
from paddlevit.weights import load_weights

NAME = "regnety_160"


@pytest.fixture(scope="module", params=["float32", "float64"])
def network(request):
    """The network in both precisions, built once and from zeros: a random start takes longer than a forward."""
    paddle.set_default_dtype(request.param)
    paddle.nn.initializer.set_global_initializer(paddle.nn.initializer.Constant(0.0))
    with mock.patch("paddlevit.regnet.model._init", lambda layer: None):
        model = build_regnet(get_config(NAME))
    paddle.nn.initializer.set_global_initializer(None)
    paddle.set_default_dtype("float32")
    model.eval()
    return request.param, model


def assert_golden(network, fmt, key):
    dtype, model = network
    images = paddle.to_tensor(golden_images(0, info(NAME)["batch"], info(NAME)["image_size"]).astype(dtype))
    with paddle.no_grad():
        logits = model(images).numpy()
    np.testing.assert_allclose(logits, reference(NAME, fmt)[key], rtol=0, atol=tolerance(NAME, fmt)[dtype])


def test_names_shapes_and_parameters(network):
    _, model = network
    theirs = [(key, shape) for key, shape, _, _ in manifest(NAME, "paddlevit")["entries"]]
    ours = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert ours == [entry for entry in theirs if not entry[0].endswith(".conv3.bias")]
    assert sum(param.size for param in model.parameters() if not param.stop_gradient) == info(NAME)["params"]


def test_paddlevits_file_loads_as_it_is(network):
    """Plain `set_state_dict` leaves the biases out, which are zero in the published file."""
    dtype, model = network
    state = golden_state(NAME, "paddlevit")
    missing, unexpected = model.set_state_dict({key: value.astype(dtype) for key, value in state.items()})
    assert missing == []
    assert len(unexpected) == 18
    assert all(key.endswith(".conv3.bias") for key in unexpected)
    assert_golden(network, "paddlevit", "logits_conv3_bias_zero_f64")


@pytest.mark.parametrize("fmt", ["paddlevit", "timm"])
def test_golden_logits(network, fmt):
    """Through the loader, which folds biases that are not zero into the normalisation."""
    dtype, model = network
    state = {key: value.astype(dtype) for key, value in golden_state(NAME, fmt).items()}
    load_weights(model, state, source=fmt)
    assert_golden(network, fmt, "logits_f64")


def regnety_200mf(**options):
    """RegNetY-200MF, whose published size is 3.2 M parameters."""
    return RegNet(widths=(24, 56, 152, 368), depths=(1, 1, 4, 7), group_width=8, **options)


def test_another_member_of_the_family():
    params = sum(param.size for param in regnety_200mf().parameters() if not param.stop_gradient)
    assert round(params / 1e6, 1) == 3.2


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 1)])
def test_any_size_class_number_and_batch_of_one(size):
    model = regnety_200mf(num_classes=5)
    model.eval()
    images = paddle.randn([2, 3, *size])
    logits = model(images).numpy()
    assert logits.shape == (2, 5)
    np.testing.assert_allclose(model(images[1:]).numpy(), logits[1:], atol=1e-6)
    assert model.forward_features(images).shape == [2, 368]


def test_without_classes_the_network_returns_features():
    model = regnety_200mf(num_classes=0)
    model.eval()
    images = paddle.randn([1, 3, 32, 32])
    assert model(images).shape == [1, 368]
    np.testing.assert_array_equal(model(images).numpy(), model.forward_features(images).numpy())


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


def test_widths_that_do_not_fit_are_named():
    with pytest.raises(
        UserError, match=r"MODEL.WIDTHS must be multiples of MODEL.GROUP_WIDTH 112, got \[224, 450, 1232, 3024\]"
    ):
        build_regnet(get_config(NAME, ["MODEL.WIDTHS", [224, 450, 1232, 3024]]))
    with pytest.raises(UserError, match=r"MODEL.WIDTHS and MODEL.DEPTHS must be .* and \[2, 4, 11\]"):
        build_regnet(get_config(NAME, ["MODEL.DEPTHS", [2, 4, 11]]))


def test_the_teacher_is_evaluated_as_published():
    data = get_config(NAME).DATA
    assert (data.CROP_PCT, data.INTERPOLATION, data.IMAGE_SIZE) == (0.95, "bicubic", 224)
