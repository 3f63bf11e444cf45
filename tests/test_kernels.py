"""The faster operations are the plain ones: values and gradients, frozen parameters, static programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from paddlevit import build_model, kernels, list_models
from paddlevit.config import get_config
from paddlevit.layers import Conv2D, LayerNorm, Linear
from paddlevit.runtime.settings import mkl_passes_over_avx2

FEW = kernels.FEW


@pytest.fixture(autouse=True)
def float64():
    paddle.set_default_dtype("float64")
    paddle.seed(0)
    yield
    paddle.set_default_dtype("float32")


def variable(*shape):
    tensor = paddle.randn(shape)
    tensor.stop_gradient = False
    return tensor


def assert_equal(ours, plain, *inputs):
    """Same values and gradients, with `inputs` in training and without gradients."""
    wanted = [tensor for tensor in inputs if not tensor.stop_gradient]
    result, expected = ours(*inputs), plain(*inputs)
    np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=0, atol=1e-12)
    cotangent = paddle.randn(expected.shape)
    for grad, right in zip(paddle.grad(result, wanted, cotangent), paddle.grad(expected, wanted, cotangent)):
        np.testing.assert_allclose(grad.numpy(), right.numpy(), rtol=0, atol=1e-12 * (1 + right.abs().max().item()))
    with paddle.no_grad():
        np.testing.assert_allclose(ours(*inputs).numpy(), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (0, 1), (1, 2)])
def test_linear(shape, frozen):
    inputs = variable(*shape), variable(5, 4), variable(4)
    for i in frozen:
        inputs[i].stop_gradient = True
    assert_equal(partial(kernels.linear, training=True), F.linear, *inputs)


@pytest.mark.parametrize("tokens", [3, FEW // 16 + 1])
@pytest.mark.parametrize("frozen", [False, True])
def test_layer_norm(tokens, frozen):
    inputs = variable(2, tokens, 16), variable(16), variable(16)
    inputs[2].stop_gradient = frozen
    inputs[0].set_value(inputs[0] + 3.0)
    ours = partial(kernels.layer_norm, epsilon=1e-6, training=True)
    assert_equal(ours, lambda x, weight, bias: F.layer_norm(x, 16, weight, bias, 1e-6), *inputs)


@pytest.mark.parametrize("size", [10, FEW + 1])
def test_gelu_and_quick_gelu(size):
    x = 3.0 * variable(size).detach()
    x.stop_gradient = False
    assert_equal(kernels.gelu, F.gelu, x)
    assert_equal(kernels.quick_gelu, lambda x: x * F.sigmoid(1.702 * x), x)
    x.stop_gradient = True
    np.testing.assert_allclose(kernels.gelu(x).numpy(), F.gelu(x).numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "out", "options"),
    [
        (6, 6, {"kernel_size": 3, "padding": 1, "groups": 6}),
        (6, 6, {"kernel_size": 5, "padding": 2, "groups": 6}),
        (6, 4, {"kernel_size": 3, "padding": 1}),
        (6, 6, {"kernel_size": 3, "padding": 1, "groups": 6, "stride": 2}),
        (6, 12, {"kernel_size": 3, "padding": 1, "groups": 6}),
        (6, 4, {"kernel_size": 3, "padding": 1, "groups": 2}),
        (6, 4, {"kernel_size": 3}),
        (6, 4, {"kernel_size": 3, "padding": 2, "dilation": 2}),
        (6, 4, {"kernel_size": 1}),
        (6, 4, {"kernel_size": 1, "stride": 2}),
        (40, 4, {"kernel_size": 3, "padding": 1}),
    ],
)
@pytest.mark.parametrize(("n", "size"), [(2, (9, 8)), (4, (5, 6)), (1, (17, 16))])
@pytest.mark.parametrize("frozen", [False, True])
def test_convolution(channels, out, options, n, size, frozen):
    layer, plain = Conv2D(channels, out, **options), nn.Conv2D(channels, out, **options)
    layer.bias.set_value(paddle.randn([out]))
    layer.bias.stop_gradient = frozen
    plain.set_state_dict(layer.state_dict())
    layer.weight.stop_gradient = plain.weight.stop_gradient = frozen
    x = variable(n, channels, *size)
    parameters = [] if frozen else [layer.weight, layer.bias]
    assert_equal(lambda x, *_: layer(x), lambda x, *_: nn.Conv2D.forward(layer, x), x, *parameters)
    if not frozen:
        for convolution in (layer, plain):
            (convolution(x).sin().sum() + convolution(2 * x).sum()).backward()
        np.testing.assert_allclose(layer.weight.grad.numpy(), plain.weight.grad.numpy(), atol=1e-11)
        np.testing.assert_allclose(layer.bias.grad.numpy(), plain.bias.grad.numpy(), atol=1e-11)


def conv_and_norm(bias):
    layer, norm = Conv2D(4, 6, 3, padding=1, bias_attr=bias), nn.BatchNorm2D(6)
    for tensor in (norm.weight, norm.bias, norm._mean):
        tensor.set_value(paddle.randn([6]))
    if layer.bias is not None:
        layer.bias.set_value(paddle.randn([6]))
    norm._variance.set_value(paddle.rand([6]) + 0.1)
    return layer, norm


@pytest.mark.parametrize("bias", [None, False])
@pytest.mark.parametrize("momentum", [0.9, 1.0])
def test_convolution_norm_and_gelu_in_training(bias, momentum):
    layer, norm = conv_and_norm(bias)
    norm._momentum = momentum
    before = norm._mean.numpy(), norm._variance.numpy()
    statistics, gradients = [], []
    x = variable(2, 4, 9, 8)
    for step in (kernels.conv_norm_gelu, lambda x, layer, norm: F.gelu(norm(nn.Conv2D.forward(layer, x)))):
        norm._mean.set_value(before[0])
        norm._variance.set_value(before[1])
        wanted = [x, *layer.parameters(), norm.weight, norm.bias]
        y = step(x, layer, norm)
        y.sin().sum().backward()
        statistics.append([norm._mean.numpy(), norm._variance.numpy(), y.numpy()])
        gradients.append([tensor.grad.numpy() for tensor in wanted])
        for tensor in wanted:
            tensor.clear_grad()
    for ours, plain in zip(*statistics):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-12)
    for ours, plain in zip(*gradients):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-11)
    if momentum == 1.0:
        np.testing.assert_array_equal(statistics[0][0], before[0])


def test_a_single_value_per_channel_is_not_normalised_in_training():
    """As in Paddle: its running statistics stay, too."""
    layer, norm = conv_and_norm(None)
    x, before = variable(1, 4, 1, 1), norm._mean.numpy()
    np.testing.assert_allclose(kernels.conv_norm_gelu(x, layer, norm).numpy(), F.gelu(layer(x)).numpy(), atol=1e-12)
    np.testing.assert_array_equal(norm._mean.numpy(), before)


@pytest.mark.parametrize("bias", [None, False])
@pytest.mark.parametrize("fixed", [False, True])
def test_convolution_norm_and_gelu_in_evaluation(bias, fixed):
    layer, norm = conv_and_norm(bias)
    layer.eval(), norm.eval()
    if fixed:  # as frozen ones are
        norm.train()
        norm._use_global_stats = True
    x = variable(2, 4, 9, 8)
    before = norm._mean.numpy()
    expected = F.gelu(norm(nn.Conv2D.forward(layer, x)))
    with paddle.no_grad():
        np.testing.assert_allclose(kernels.conv_norm_gelu(x, layer, norm).numpy(), expected.numpy(), atol=1e-12)
        seen = []
        layer.register_forward_post_hook(lambda layer, inputs, output: seen.append(output.numpy()))
        np.testing.assert_allclose(kernels.conv_norm_gelu(x, layer, norm).numpy(), expected.numpy(), atol=1e-12)
    np.testing.assert_allclose(seen[0], nn.Conv2D.forward(layer, x).numpy(), atol=1e-12)
    np.testing.assert_array_equal(norm._mean.numpy(), before)
    (grad,) = paddle.grad(kernels.conv_norm_gelu(x, layer, norm).sum(), x)
    np.testing.assert_allclose(grad.numpy(), paddle.grad(expected.sum(), x)[0].numpy(), atol=1e-12)


@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_attention(size, frozen):
    """Also where exponentials of the scores would be infinite or zero."""
    q, k, v = (variable(3, 2, 5, 4) for _ in range(3))
    bias = variable(2, 5, 5)
    bias.set_value(bias * size)
    bias.stop_gradient = frozen

    def plain(q, k, v, bias):
        return F.softmax(q @ k.transpose([0, 1, 3, 2]) + bias) @ v

    assert_equal(partial(kernels.attention, training=True), plain, q, k, v, bias)


def test_attention_of_what_is_not_finite_is_not_finite():
    q, k, v = (paddle.randn([3, 2, 5, 4]) for _ in range(3))
    q[1, 1, 2, 3] = float("nan")
    with paddle.no_grad():
        out = kernels.attention(q, k, v, paddle.zeros([2, 5, 5]), training=False).numpy()
    assert np.isnan(out[1, 1, 2]).all() and np.isfinite(out[0]).all()


@pytest.mark.parametrize("name", list_models("*_digits"))
def test_no_images_have_no_logits(name):
    config = get_config(name)
    model = build_model(config)
    model.eval()
    with paddle.no_grad():
        assert model(paddle.zeros([0, 3, *[config.DATA.IMAGE_SIZE] * 2])).shape == [0, config.MODEL.NUM_CLASSES]


def test_a_static_program_has_the_plain_operations():
    net = nn.Sequential(Linear(5, 8), LayerNorm(8), nn.GELU(), Linear(8, 3))
    x = paddle.randn([2, 7, 5])
    expected = net(x).numpy()
    static = paddle.jit.to_static(net, full_graph=True)
    y = static(x)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)
    y.sum().backward()
    np.testing.assert_allclose(net[3].bias.grad.numpy(), 14.0, atol=1e-9)


def test_a_network_in_evaluation_gives_gradients_of_single_tensors():
    """Saliency maps ask for them; nodes of our own would refuse."""
    net = nn.Sequential(Conv2D(3, 3, 3, padding=1, groups=3), nn.Flatten(2), Linear(64, FEW // 6), LayerNorm(FEW // 6))
    net.eval()
    x = variable(2, 3, 8, 8)
    (grad,) = paddle.grad(net(x).sin().sum(), x)
    net.train()
    net(x).sin().sum().backward()
    np.testing.assert_allclose(grad.numpy(), x.grad.numpy(), atol=1e-9)


def test_a_bias_does_not_raise_the_precision():
    """As under AMP on a GPU, one step up: what a convolution gives is less precise than its parameters."""
    y = paddle.ones([2, 3, 4, 4], dtype="float32")
    bias = paddle.to_tensor([1.0, 2.0, 3.0], dtype="float64", stop_gradient=False)
    out = kernels.add_bias(y, bias)
    assert out.dtype == paddle.float32
    out.sum().backward()
    assert bias.grad.tolist() == [32.0, 32.0, 32.0]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: sse2 fma avx2 avx512f\n", False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: sse2 fma avx2 rdseed\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: sse2 avx rdseed\n", False),
        ("CPU implementer\t: 0x41\nFeatures\t: fp asimd\n", False),
    ],
)
def test_which_processors_need_to_be_told_of_avx2(processor, expected, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"{processor}\n{processor}")
    assert mkl_passes_over_avx2() == expected
