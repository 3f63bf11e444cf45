"""Initialisers equal in distribution to PyTorch's, stochastic depth, attention against NumPy."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlevit import layers
from paddlevit.layers import Attention, Conv2D, DropPath, classifier, drop_path_rates, init_like_torch, trunc_normal_


def test_trunc_normal_moments():
    weight = paddle.create_parameter([400, 500], "float32")
    trunc_normal_(weight, std=0.02)
    values = weight.numpy()
    assert abs(values.mean()) < 3e-4
    # A cut at two standard deviations would give 0.0176.
    assert values.std() == pytest.approx(0.02, rel=0.02)
    assert np.abs(values).max() > 0.06


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(300, 200), 300),
        (nn.Conv2D(16, 40, 5), 16 * 25),
        (nn.Conv2D(32, 64, 3, groups=32), 9),
    ],
)
def test_default_of_torch(layer, fan_in):
    paddle.seed(0)
    init_like_torch(layer)
    bound = fan_in**-0.5
    for tensor in (layer.weight, layer.bias):
        values = tensor.numpy().ravel()
        assert np.abs(values).max() <= bound * (1 + 1e-6)
        assert np.abs(values).max() > 0.9 * bound
    assert layer.weight.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.06)


def test_drop_path_rates_reach_the_rate():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    paddle.seed(0)
    x = paddle.ones([4000, 3, 2])
    layer = DropPath(0.25)
    layer.train()
    y = layer(x).numpy().reshape(4000, -1)
    assert np.isin(y, np.float32([0.0, 1 / 0.75])).all()
    assert (y == y[:, :1]).all()
    assert (y[:, 0] == 0).mean() == pytest.approx(0.25, abs=0.03)
    layer.eval()
    assert layer(x) is x


def test_attention_equals_numpy_and_gives_its_probabilities():
    paddle.seed(1)
    layer = Attention(12, 3)
    layer.eval()
    taken = []
    layer.attn_dropout.register_forward_post_hook(lambda _, __, out: taken.append(out.numpy()))
    x = np.random.default_rng(0).standard_normal((2, 5, 12)).astype("float32")
    y = layer(paddle.to_tensor(x)).numpy()
    qkv = x @ layer.qkv.weight.numpy() + layer.qkv.bias.numpy()
    q, k, v = (part.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1))
    scores = q @ k.transpose(0, 1, 3, 2) / 2.0
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    out = (probs @ v).transpose(0, 2, 1, 3).reshape(2, 5, 12) @ layer.proj.weight.numpy() + layer.proj.bias.numpy()
    np.testing.assert_allclose(y, out, atol=1e-6)
    np.testing.assert_allclose(taken[0], probs, atol=1e-6)


def test_attention_without_bias_has_none():
    assert Attention(8, 2, qkv_bias=False).qkv.bias is None
    assert Attention(8, 2).qkv.bias is not None


@pytest.mark.parametrize("bias", [None, False])
@pytest.mark.parametrize("options", [{"padding": 1, "groups": 6}, {"stride": 2, "padding": 2, "dilation": 2}])
def test_convolution_equals_that_of_paddle(bias, options):
    paddle.seed(4)
    conv = Conv2D(6, 6, 3, bias_attr=bias, **options)
    if bias is None:
        conv.bias.set_value(paddle.randn([6]))
    x, results = paddle.randn([2, 6, 9, 8]), []
    x.stop_gradient = False
    for forward in (Conv2D.forward, nn.Conv2D.forward):
        y = forward(conv, x)
        results.append([y, *paddle.grad(y.sin().sum(), [x, *conv.parameters()])])
    for ours, plain in zip(*results):
        np.testing.assert_allclose(ours.numpy(), plain.numpy(), atol=2e-5)


def test_a_bias_does_not_raise_the_precision():
    """As under AMP on a GPU, one step up: what a convolution gives is less precise than its parameters."""
    conv = Conv2D(2, 3, 1)
    conv.bias = paddle.create_parameter([3], "float64")
    out = conv(paddle.ones([2, 2, 4, 4]))
    assert out.dtype == paddle.float32
    out.sum().backward()
    assert conv.bias.grad.tolist() == [32.0, 32.0, 32.0]


def test_no_head_for_no_classes():
    assert isinstance(classifier(8, 0), nn.Identity)


def test_flash_attention_equals_ours_and_gives_way_to_hooks(monkeypatch):
    """GPUs use it; here Paddle computes it by plain operations."""
    paddle.seed(3)
    layer = Attention(12, 3)
    layer.eval()
    x = paddle.randn([2, 5, 12])
    expected = layer(x).numpy()
    monkeypatch.setattr(layers, "has_flash_attention", lambda x, dropout: True)
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-6)
    monkeypatch.undo()
    monkeypatch.setattr(layers, "runs_flash_attention", lambda device: True)
    half = x.astype("float16")
    assert layers.has_flash_attention(half, layer.attn_dropout)
    assert not layers.has_flash_attention(x, layer.attn_dropout)
    layer.attn_dropout.register_forward_post_hook(lambda _, __, out: None)
    assert not layers.has_flash_attention(half, layer.attn_dropout)


@pytest.mark.parametrize(
    ("device", "capability", "runs"),
    [("gpu:0", (7, 0), False), ("gpu:1", (7, 5), False), ("gpu:0", (8, 0), True), ("gpu:7", (9, 0), True)],
)
def test_flash_attention_needs_compute_capability_8(monkeypatch, device, capability, runs):
    """V100 and T4 are 7.0 and 7.5, A100 and H100 8.0 and 9.0."""
    asked = []
    monkeypatch.setattr(paddle.device, "get_device", lambda: device)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    layers.runs_flash_attention.cache_clear()
    try:
        for _ in range(3):
            assert layers.has_flash_attention(paddle.zeros([1], "float16"), nn.Dropout()) is runs
    finally:
        layers.runs_flash_attention.cache_clear()
    assert asked == [device], "asked once, of the device in use"


def test_no_flash_attention_on_a_cpu():
    assert not layers.has_flash_attention(paddle.zeros([1], "float16"), nn.Dropout())


def sdpa_of_paddle_3_0(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, training=True, name=None
):  # and 3.1 and 3.2, which end with `backend`
    """Without a mask `training` is not passed on to flash_attention, whose default is True."""
    assert attn_mask is None
    return softmax_attention(query, key, value, dropout_p)


def sdpa_of_paddle_3_3(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    training=True,
    backend=None,
    scale=None,
    enable_gqa=True,
    name=None,
):
    return softmax_attention(query, key, value, dropout_p if training else 0.0)


def softmax_attention(query, key, value, dropout_p):
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (query, key, value))
    probs = nn.functional.softmax(q @ k.transpose([0, 1, 3, 2]) / q.shape[-1] ** 0.5)
    return (nn.functional.dropout(probs, dropout_p) @ v).transpose([0, 2, 1, 3])


@pytest.mark.parametrize("sdpa", [sdpa_of_paddle_3_0, sdpa_of_paddle_3_3])
def test_flash_attention_drops_in_training_only(monkeypatch, sdpa):
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", sdpa)
    q, k, v = (paddle.randn([2, 5, 3, 4]) for _ in range(3))
    dropout = nn.Dropout(0.5)
    plain = softmax_attention(q, k, v, 0.0).numpy()
    assert not np.allclose(layers.flash_attention(q, k, v, dropout).numpy(), plain)
    dropout.eval()
    np.testing.assert_allclose(layers.flash_attention(q, k, v, dropout).numpy(), plain, atol=1e-6)
