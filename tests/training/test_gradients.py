"""The loss scale against its definition in plain Python, and what it does with numbers that are not finite."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlevit.training.gradients import LossScale


def gradients_of(*values):
    return [paddle.to_tensor(np.asarray(value, dtype="float32")) for value in values]


def test_a_fixed_scale_leaves_finite_gradients_as_they_are():
    gradients = gradients_of([1.5, -2.0], [[3.0]])
    scale = LossScale()
    assert scale.scaled(paddle.to_tensor(0.7)).item() == pytest.approx(0.7)
    assert not scale.unscale(gradients).item()
    assert [g.tolist() for g in gradients] == [[1.5, -2.0], [[3.0]]]
    assert scale.state() == {}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_makes_all_gradients_zero(bad, dynamic):
    gradients = gradients_of([1.0, 2.0], [3.0, bad, 4.0], [[5.0]])
    assert LossScale(dynamic=dynamic).unscale(gradients).item()
    assert [g.tolist() for g in gradients] == [[0, 0], [0, 0, 0], [[0]]]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_reaches_every_gradient(loss):
    weight = paddle.to_tensor([1.0, 2.0], stop_gradient=False)
    # The gradient of this loss with regard to the weight is 1: nothing but the scale tells that it is not finite.
    LossScale().scaled(weight.sum() + loss).backward()
    assert np.isnan(weight.grad.numpy()).all()


def test_dynamic_scaling_cancels_out():
    scale = LossScale(dynamic=True)
    weight = paddle.to_tensor([1.0, 2.0], stop_gradient=False)
    loss = (weight**2).sum()
    assert scale.scaled(loss).item() == 5.0 * 2**16
    scale.scaled(loss).backward()
    scale.unscale([weight.grad_])
    assert weight.grad.tolist() == [2.0, 4.0]


@settings(max_examples=40)
@given(st.lists(st.sampled_from([True, True, True, False]), max_size=60), st.integers(1, 6))
def test_scale_and_counts_follow_the_definition(overflows, interval):
    import paddlevit.training.gradients as gradients

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "_GROWTH_INTERVAL", interval)
        scale = LossScale(dynamic=True)
        expected, finite, row, longest = 2.0**16, 0, 0, 0
        for overflow in overflows:
            scale.unscale(gradients_of([np.inf if overflow else 1.0]))
            finite = 0 if overflow else finite + 1
            if overflow:
                expected = max(expected / 2, 1.0)
            elif finite == interval:
                expected, finite = expected * 2, 0
            row = row + 1 if overflow and expected == 1.0 else 0
            longest = max(longest, row)
        assert scale.state() == {"scale": expected, "finite_steps": finite}
        assert scale.read_skipped() == {"total": sum(overflows), "in_a_row": longest}
        assert scale.read_skipped() == {"total": 0, "in_a_row": row}


def test_a_restored_scale_goes_on():
    one, two = LossScale(dynamic=True), LossScale(dynamic=True)
    one.unscale(gradients_of([np.inf]))
    one.unscale(gradients_of([1.0]))
    two.load_state(one.state())
    assert two.state() == one.state() == {"scale": 2.0**15, "finite_steps": 1}
    fixed = LossScale()
    fixed.load_state(one.state())
    assert fixed.state() == {}
