"""Initialisers equal in distribution to PyTorch's, stochastic depth, attention against NumPy."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlevit.layers import Attention, DropPath, classifier, drop_path_rates, init_like_torch, trunc_normal_


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


def test_no_head_for_no_classes():
    assert isinstance(classifier(8, 0), nn.Identity)
