"""The compiled operators against Paddle's, forward and backward, and where they are left alone."""

from __future__ import annotations

import shutil

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddlevit import build_model, flops
from paddlevit.attention_maps import heat_map
from paddlevit.layers import Conv2D, LayerNorm, Linear, conv_norm_gelu, gelu
from paddlevit.runtime import kernels
from paddlevit.training.recompute import recompute_blocks

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture(scope="session")
def compiled():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDLEVIT_KERNELS", "1")
        patch.delenv("CXX", raising=False)
        kernels.library.cache_clear()
        library = kernels.library()
    kernels.library.cache_clear()  # other tests have Paddle's operators
    assert library is not None
    return library


@pytest.fixture
def calls(compiled, monkeypatch):
    """The compiled operators are on; which of them are called."""
    called, call = [], kernels._call
    monkeypatch.setattr(kernels, "library", lambda: compiled)
    monkeypatch.setattr(kernels, "_call", lambda name, *args: (called.append(name), call(name, *args)))
    return called


def results(function, arrays, dtype="float32"):
    """What `function` gives, and the gradients of its inputs for a gradient that is the same for all."""
    tensors = [paddle.to_tensor(array, dtype=dtype, stop_gradient=False) for array in arrays]
    y = function(*tensors)
    y.backward(paddle.to_tensor(np.random.default_rng(1).standard_normal(y.shape), dtype=dtype))
    return [x.numpy() for x in (y, *(tensor.grad for tensor in tensors))]


def check(ours, paddles, arrays):
    """`ours` is as near to `paddles` in float64 as float32 allows."""
    for found, expected in zip(results(ours, arrays), results(paddles, arrays, "float64")):
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * max(np.abs(expected).max(), 1e-3))


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 2), (2, 1), (3, 3), (7, 7), (8, 9), (9, 8), (14, 14), (5, 40)])
def test_depthwise_convolution(calls, stride, height, width):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([3, 5, height, width]), rng.standard_normal([5, 1, 3, 3])]
    options = ([stride, stride], 1, [1, 1], 5)
    check(lambda x, w: kernels.conv2d(x, w, *options), lambda x, w: F.conv2d(x, w, None, *options), arrays)
    assert calls == ["depthwise", "depthwise_grad"]


@needs_compiler
def test_gelu(calls):
    check(gelu, F.gelu, [np.linspace(-15, 15, 30_001)])
    assert calls == ["gelu", "gelu_grad"]
    far = paddle.to_tensor([-1e30, -40.0, 40.0, 1e30, float("nan")])
    np.testing.assert_allclose(gelu(far).numpy(), F.gelu(far).numpy(), rtol=0, atol=1e-37)


@needs_compiler
@pytest.mark.parametrize("shape", [[1, 3], [3, 5], [2, 7, 18], [1000, 384]])
def test_layer_norm(calls, shape):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) + 3, rng.standard_normal(shape[-1:]), rng.standard_normal(shape[-1:])]
    check(
        lambda *tensors: kernels.layer_norm(*tensors, 1e-5),
        lambda x, *affine: F.layer_norm(x, shape[-1:], *affine, 1e-5),
        arrays,
    )
    assert calls == ["layer_norm", "layer_norm_grad"]


@needs_compiler
@pytest.mark.parametrize(
    "shape, bias_shape",
    [
        ([1, 1], [1]),
        ([40, 7, 18], [18]),
        ([3, 1537], [1537]),
        ([3, 5, 1, 1], [5, 1, 1]),
        ([3, 5, 7, 9], [5, 1, 1]),
        ([40, 2, 49, 49], [2, 49, 49]),
    ],
)
def test_a_bias_is_added(calls, shape, bias_shape):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape), rng.standard_normal(bias_shape)]
    check(lambda x, bias: kernels.add_bias(x * 1, bias), lambda x, bias: x + bias, arrays)
    assert calls == ["bias", "bias_grad"]


@needs_compiler
def test_linear(calls):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ([3, 5, 7], [7, 18], [18])]
    check(kernels.linear, F.linear, arrays)
    check(lambda x, weight: kernels.linear(x, weight, None), F.linear, arrays[:2])
    assert calls == ["bias", "bias_grad"]


@needs_compiler
@pytest.mark.parametrize("shape", [[1, 1], [3, 2], [17, 16], [9, 4, 49], [2, 3, 5, 197], [3, 784]])
def test_softmax(calls, shape):
    check(lambda x: kernels.softmax(x * 1), F.softmax, [10 * np.random.default_rng(0).standard_normal(shape)])
    assert calls == ["softmax", "softmax_grad"]


@needs_compiler
def test_softmax_of_what_is_far_or_no_number(calls):
    x = np.array([[1e30, 0.0, -1e30], [-np.inf, 1.0, 2.0], [0.0, np.nan, 1.0], [np.nan, 0.0, 1.0]], "float32")
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(kernels.softmax(paddle.to_tensor(x)).numpy(), expected, rtol=1e-6, atol=1e-37)
    assert calls == ["softmax"]


@needs_compiler
def test_a_result_of_softmax_that_was_changed_in_place_is_refused(calls):
    x = paddle.ones([2, 3])
    x.stop_gradient = False
    y = kernels.softmax(x * 1)
    y.add_(paddle.ones([2, 3]))
    with pytest.raises(OSError, match="AssertionError: the result of softmax was changed in place"):
        y.sum().backward()


@needs_compiler
@pytest.mark.parametrize("kernel, groups", [(1, 1), (3, 6)])
def test_batch_norm_and_gelu_in_evaluation(calls, kernel, groups):
    paddle.seed(0)
    conv, norm = Conv2D(6, 6, kernel, padding=kernel // 2, groups=groups), paddle.nn.BatchNorm2D(6, epsilon=0.1)
    for tensor in norm.state_dict().values():
        tensor.set_value(paddle.rand([6]) + 0.5)
    norm.eval()
    x = paddle.randn([2, 6, 7, 9])
    expected = F.gelu(norm(paddle.nn.Conv2D.forward(conv, x))).numpy()
    with paddle.no_grad():
        np.testing.assert_allclose(conv_norm_gelu(conv, norm, x).numpy(), expected, rtol=0, atol=1e-6)
    assert calls[-1] == "norm_gelu"
    np.testing.assert_allclose(conv_norm_gelu(conv, norm, x).numpy(), expected, rtol=0, atol=1e-6)  # with a gradient
    assert calls[-1] == "gelu"


@needs_compiler
def test_hooks_see_what_convolution_and_batch_norm_give(calls):
    conv, norm = Conv2D(2, 2, 1), paddle.nn.BatchNorm2D(2)
    norm.eval()
    seen = []
    norm.register_forward_post_hook(lambda layer, inputs, output: seen.append(output))
    with paddle.no_grad():
        conv_norm_gelu(conv, norm, paddle.ones([1, 2, 3, 3]))
    assert len(seen) == 1


@needs_compiler
@pytest.mark.parametrize("name", ["hrformer_digits", "cvt_digits", "pit_digits"])
def test_a_model_learns_the_same(calls, compiled, monkeypatch, name):
    paddle.seed(0)
    model, images = build_model(name), paddle.randn([4, 3, 32, 32])
    model.train()

    def gradients():
        model.clear_gradients()
        paddle.seed(1)
        loss = F.cross_entropy(model(images), paddle.arange(4))
        loss.backward()
        return [loss.numpy(), *(param.grad.numpy() for param in model.parameters() if param.grad is not None)]

    ours = gradients()
    assert {"layer_norm_grad", "bias_grad", "softmax_grad"} <= set(calls)
    monkeypatch.setattr(kernels, "library", lambda: None)
    scale = max(np.abs(array).max() for array in ours[1:])
    for found, expected in zip(ours, gradients()):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


@needs_compiler
def test_frozen_weights_have_no_gradient(calls):
    layers = [Conv2D(3, 3, 3, padding=1, groups=3), LayerNorm(4, 1e-5), Linear(4, 4)]
    for layer in layers:
        for param in layer.parameters():
            param.stop_gradient = True
    x = paddle.randn([2, 3, 4, 4])
    x.stop_gradient = False
    layers[2](layers[1](layers[0](x))).sum().backward()
    assert x.grad is not None and all(param.grad is None for layer in layers for param in layer.parameters())
    assert {"depthwise_grad", "bias"} < set(calls) and "bias_grad" not in calls


@needs_compiler
def test_recomputed_blocks_have_the_same_gradients(calls):
    model, images = build_model("pit_digits"), paddle.randn([2, 3, 32, 32])

    def gradient():
        model.clear_gradients()
        model(images).sum().backward()
        return model.patch_embed.conv.weight.grad.numpy()

    model.eval()  # no stochastic depth
    expected = gradient()
    recompute_blocks(model)
    calls.clear()
    model.train()
    for layer in model.sublayers():
        if hasattr(layer, "rate"):
            layer.rate = 0.0
    np.testing.assert_allclose(gradient(), expected, rtol=1e-5, atol=1e-6)
    assert calls.count("softmax") == 2 * calls.count("softmax_grad") > 0


@needs_compiler
def test_a_bias_behind_frozen_weights_has_a_gradient(calls):
    layer = Linear(4, 3)
    layer.weight.stop_gradient = True
    layer(paddle.ones([2, 4])).sum().backward()
    np.testing.assert_array_equal(layer.bias.grad.numpy(), [2, 2, 2])


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [
        ([1, 1], 0, [1, 1], 4),
        ([3, 3], 1, [1, 1], 4),
        ([1, 2], 1, [1, 1], 4),
        ([1, 1], 2, [2, 2], 4),
        ([1, 1], 1, [1, 1], 1),
    ],
    ids=["padding", "stride", "strides", "dilation", "dense"],
)
def test_other_convolutions_are_paddles(calls, options):
    x, weight = paddle.randn([2, 4, 9, 9]), paddle.randn([4, 4 // options[3], 3, 3])
    expected = F.conv2d(x, weight, None, *options)
    np.testing.assert_array_equal(kernels.conv2d(x, weight, *options).numpy(), expected.numpy())
    assert not calls


@needs_compiler
def test_other_precisions_empty_batches_and_programs_are_paddles(calls):
    assert gelu(paddle.ones([3], "float64")).dtype == paddle.float64
    for operator in (kernels.softmax, lambda x: kernels.add_bias(x, paddle.ones([3], x.dtype))):
        assert operator(paddle.ones([2, 3], "float64")).dtype == paddle.float64
        assert operator(paddle.ones([0, 3])).shape == [0, 3]
    assert gelu(paddle.ones([0, 3])).shape == [0, 3]
    for operator, count, expected in ((gelu, 1, 0.8413447), (kernels.softmax, 1, 1 / 3), (kernels.add_bias, 2, 2.0)):
        program = paddle.jit.to_static(operator, full_graph=True)
        np.testing.assert_allclose(program(*[paddle.ones([3])] * count).numpy(), expected, rtol=1e-6)
    assert not calls


def test_without_being_asked_for_or_a_compiler_they_are_paddles(monkeypatch, caplog):
    monkeypatch.delenv("PADDLEVIT_KERNELS", raising=False)
    kernels.library.cache_clear()
    assert kernels.library() is None and not caplog.records
    for compiler in ("false", "no-such-compiler"):
        monkeypatch.setenv("PADDLEVIT_KERNELS", "1")
        monkeypatch.setenv("CXX", compiler)
        kernels.library.cache_clear()
        assert gelu(paddle.ones([1])).item() == pytest.approx(0.8413447)
        assert compiler in caplog.text
    kernels.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("method", ["grad-cam", "grad-rollout"])
def test_heat_maps_take_paddles_operators(calls, monkeypatch, method):
    """paddle.grad leaves out the parameters, for which a PyLayer of Paddle 3.3.1 may then return nothing."""
    model, images = build_model("pit_digits"), paddle.randn([2, 3, 32, 32])
    found = heat_map(model, images, method=method)
    assert not calls
    model(images)
    assert calls
    monkeypatch.setattr(kernels, "library", lambda: None)
    np.testing.assert_array_equal(found, heat_map(model, images, method=method))


@needs_compiler
def test_products_are_counted_once(calls, monkeypatch):
    """A linear layer's own operator calls paddle.matmul, which counting takes for a product of attention."""
    model = build_model("pit_digits")
    found = flops.count(model, 32)
    assert not calls
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert found == flops.count(model, 32)
