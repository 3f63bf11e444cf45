"""Each name that Paddle keeps private does what the package takes it for, in the Paddle that is installed."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlevit import build_model
from paddlevit import paddle_internals as internals
from paddlevit.errors import UserError


def normed(training=True, **options):
    """A BatchNorm, and what it makes of maps whose mean is far from its running mean."""
    norm = nn.BatchNorm2D(3, **options)
    norm.train() if training else norm.eval()
    x = paddle.to_tensor(np.random.default_rng(0).normal(5.0, 2.0, [4, 3, 5, 5]).astype("float32"))
    return norm, x


def adamw(**options):
    model = nn.Linear(2, 1)
    return model, paddle.optimizer.AdamW(0.1, parameters=model.parameters(), weight_decay=0.1, **options)


def step(model, optimizer):
    model(paddle.ones([3, 2])).sum().backward()
    optimizer.step()
    optimizer.clear_grad()


def test_check_passes_and_changes_nothing():
    paddle.seed(1)
    expected, name = paddle.rand([3]).numpy(), paddle.utils.unique_name.generate("probe")
    paddle.seed(1)
    internals.check()
    np.testing.assert_array_equal(paddle.rand([3]).numpy(), expected)
    number = int(name.rpartition("_")[2])
    assert paddle.utils.unique_name.generate("probe") == f"probe_{number + 1}"


def test_check_names_what_is_missing_and_the_versions(monkeypatch):
    monkeypatch.setattr(internals, "_OF_A_BATCH_NORM", ("_mean", "_gone"))
    for start in (internals.check, lambda: build_model("pit_digits")):
        with pytest.raises(UserError, match=rf"PaddlePaddle {paddle.__version__} lacks _gone, .* 3\.3\.1"):
            start()


def test_threads_are_set():
    """tests/export looks at MKL's number; here it is enough that results stay."""
    x = paddle.rand([64, 64])
    expected = paddle.matmul(x, x).numpy()
    internals.set_cpu_threads(1)
    np.testing.assert_allclose(paddle.matmul(x, x).numpy(), expected, rtol=1e-5)


def test_conv_options():
    layer = nn.Conv2D(6, 4, 3, stride=2, padding=1, dilation=3, groups=2)
    assert internals.conv_options(layer) == ([2, 2], 1, [3, 3], 2)
    x = paddle.randn([1, 6, 8, 8])
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, *internals.conv_options(layer))
    np.testing.assert_array_equal(layer(x).numpy(), expected.numpy())


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_post_hook"])
def test_has_hooks(register):
    layer = nn.Dropout()
    assert not internals.has_hooks(layer)
    hook = getattr(layer, register)(lambda *args: None)
    assert internals.has_hooks(layer)
    hook.remove()
    assert not internals.has_hooks(layer)


def test_epsilon_is_what_was_given():
    assert internals.epsilon(nn.BatchNorm2D(1, epsilon=0.25)) == 0.25


def test_running_statistics_are_those_of_the_state():
    norm, x = normed()
    mean, variance = internals.running_statistics(norm)
    norm(x)
    np.testing.assert_array_equal(mean.numpy(), norm.state_dict()["_mean"].numpy())
    np.testing.assert_array_equal(variance.numpy(), norm.state_dict()["_variance"].numpy())
    assert mean.numpy().min() > 0.3, "they follow the layer"


def test_momentum_is_what_the_statistics_keep():
    norm, x = normed(momentum=0.25)
    assert internals.momentum(norm) == 0.25
    norm(x)
    mean = 0.75 * x.numpy().mean((0, 2, 3))
    np.testing.assert_allclose(internals.running_statistics(norm)[0].numpy(), mean, rtol=1e-5)


def test_a_momentum_of_one_keeps_the_statistics():
    norm, x = normed()
    internals.set_momentum(norm, 1.0)
    norm(x)
    assert not internals.running_statistics(norm)[0].numpy().any()
    internals.set_momentum(norm, 0.9)
    norm(x)
    assert internals.running_statistics(norm)[0].numpy().all()


def test_use_running_statistics():
    norm, x = normed()
    assert not internals.uses_running_statistics(norm)
    assert internals.uses_running_statistics(nn.BatchNorm2D(3, use_global_stats=True))
    internals.use_running_statistics(norm)
    assert internals.uses_running_statistics(norm)
    y = norm(x).numpy()
    norm.eval()
    np.testing.assert_array_equal(norm(x).numpy(), y)
    assert not internals.running_statistics(norm)[0].numpy().any()


def test_squared_norm():
    gradient = paddle.to_tensor([[3.0, 4.0], [0.0, 12.0]])
    squares = internals.squared_norm(gradient)
    assert (squares.shape, squares.item()) == ([1], 169.0)


@pytest.mark.parametrize(
    ("value", "finite_steps", "dynamic", "scale"),
    [
        (8.0, 0, True, 4.0),
        (8.0, 2, True, 8.0),  # the third finite step in a row
        (np.inf, 2, True, 2.0),
        (np.nan, 2, True, 2.0),
        (np.nan, 2, False, 4.0),
    ],
)
def test_unscale(value, finite_steps, dynamic, scale):
    gradients, now = [paddle.to_tensor([1.0, 2.0]), paddle.to_tensor([value])], paddle.to_tensor([4.0])
    counts = (paddle.to_tensor([finite_steps], dtype="int32"), paddle.zeros([1], dtype="int32"))
    overflow = internals.unscale_(gradients, now, *counts, double_after=3, dynamic=dynamic)
    assert overflow.tolist() == [not np.isfinite(value)]
    assert now.item() == scale
    expected = [[0.25, 0.5], [2.0]] if np.isfinite(value) else [[0.0, 0.0], [0.0]]
    assert [gradient.tolist() for gradient in gradients] == expected


def test_learning_rate_tensor_is_what_a_step_takes():
    model, optimizer = adamw()
    rate, before = internals.learning_rate_tensor(optimizer), model.weight.numpy().copy()
    optimizer.set_lr(0.5)
    assert rate.item() == 0.5
    rate.multiply_(paddle.zeros(rate.shape))
    step(model, optimizer)
    np.testing.assert_array_equal(model.weight.numpy(), before)
    optimizer.set_lr(0.5)
    step(model, optimizer)
    assert np.abs(model.weight.numpy() - before).min() > 0.1


def test_master_weights_are_float32_copies_by_tensor_name():
    model, optimizer = adamw()
    step(model, optimizer)
    assert internals.master_weights(optimizer) == {}
    model, optimizer = adamw(multi_precision=True)
    model.to(dtype="bfloat16")
    optimizer.state_dict()
    optimizer._create_master_weight(model.weight)
    master = internals.master_weights(optimizer)[model.weight.name]
    assert master.dtype == paddle.float32
    np.testing.assert_array_equal(master.numpy(), model.weight.astype("float32").numpy())


def test_stepped_parameters():
    model, optimizer = adamw()
    assert [param.name for param in internals.stepped_parameters(optimizer)] == [model.weight.name, model.bias.name]


def test_restored_state_is_there_before_the_next_step():
    model, optimizer = adamw()
    step(model, optimizer)
    state = {key: value.clone() for key, value in optimizer.state_dict().items() if key != "LR_Scheduler"}
    other = paddle.optimizer.AdamW(0.1, parameters=model.parameters())
    assert not internals.restored_state(other)
    other.set_state_dict(state)
    assert state.keys() <= internals.restored_state(other).keys()
    for key, value in state.items():
        np.testing.assert_array_equal(internals.restored_state(other)[key].numpy(), value.numpy())
