"""Losses against NumPy, in value and in gradient."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlevit.errors import UserError
from paddlevit.training.objectives import Distilled, Renormalized, Supervised, binary_cross_entropy, soft_cross_entropy

RNG = np.random.default_rng(0)
LOGITS, OTHER, TEACHER = (RNG.standard_normal((5, 7)).astype("float32") * 3 for _ in range(3))
TARGETS = RNG.dirichlet(np.ones(7), 5).astype("float32")


def log_softmax(x):
    x = x.astype("float64") - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(logits, targets):
    return -(targets * log_softmax(logits)).sum(-1).mean()


class Fixed(nn.Layer):
    """A network that returns what it was given."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = tuple(paddle.to_tensor(output, stop_gradient=False) for output in outputs)

    def forward(self, images):
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


def test_soft_cross_entropy_and_its_gradient():
    logits = paddle.to_tensor(LOGITS, stop_gradient=False)
    loss = soft_cross_entropy(logits, paddle.to_tensor(TARGETS))
    assert loss.item() == pytest.approx(cross_entropy(LOGITS, TARGETS), rel=1e-5)
    loss.backward()
    np.testing.assert_allclose(logits.grad.numpy(), (np.exp(log_softmax(LOGITS)) - TARGETS) / 5, atol=1e-6)


def test_two_heads_without_a_teacher_learn_both():
    loss, logits = Supervised()(Fixed(LOGITS, OTHER), None, paddle.to_tensor(TARGETS))
    assert loss.item() == pytest.approx((cross_entropy(LOGITS, TARGETS) + cross_entropy(OTHER, TARGETS)) / 2, rel=1e-5)
    np.testing.assert_array_equal(logits.numpy(), LOGITS)


@pytest.mark.parametrize("student", [Fixed(LOGITS, OTHER), Fixed(LOGITS)], ids=["two heads", "one head"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_hard_distillation(student, alpha):
    objective = Distilled(Fixed(TEACHER), kind="hard", alpha=alpha)
    loss, _ = objective(student, paddle.zeros([5, 1]), paddle.to_tensor(TARGETS))
    learned = student.outputs[-1].numpy()
    teacher = np.eye(7)[TEACHER.argmax(-1)]
    expected = (1 - alpha) * cross_entropy(LOGITS, TARGETS) + alpha * cross_entropy(learned, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_and_its_gradient(tau):
    student = Fixed(LOGITS, OTHER)
    objective = Distilled(Fixed(TEACHER), kind="soft", alpha=0.4, tau=tau)
    loss, _ = objective(student, paddle.zeros([5, 1]), paddle.to_tensor(TARGETS))
    teacher = np.exp(log_softmax(TEACHER / tau))
    divergence = (teacher * (log_softmax(TEACHER / tau) - log_softmax(OTHER / tau))).sum(-1).mean()
    assert divergence > 0.01
    assert loss.item() == pytest.approx(0.6 * cross_entropy(LOGITS, TARGETS) + 0.4 * tau**2 * divergence, rel=1e-5)
    loss.backward()
    gradient = 0.4 * tau * (np.exp(log_softmax(OTHER / tau)) - teacher) / 5
    np.testing.assert_allclose(student.outputs[1].grad.numpy(), gradient, atol=1e-6)


def test_a_teacher_sees_images_in_its_own_normalisation():
    pixels = np.random.default_rng(0).random((2, 3, 4, 4))
    given, own = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def normalized(mean, std):
        return (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))

    seen = Renormalized(nn.Identity(), given=given, own=own)(paddle.to_tensor(normalized(*given).astype("float32")))
    np.testing.assert_allclose(seen.numpy(), normalized(*own), rtol=0, atol=1e-6)


def test_the_teacher_gets_no_gradient_and_is_in_evaluation_mode():
    teacher = nn.Sequential(nn.Linear(4, 7), nn.Dropout(0.5))
    student = nn.Linear(4, 7)
    images = paddle.randn([5, 4])
    loss, _ = Distilled(teacher, kind="soft")(student, images, paddle.to_tensor(TARGETS))
    loss.backward()
    assert teacher[0].weight.grad is None
    assert student.weight.grad is not None
    assert not teacher.training


@pytest.mark.parametrize(
    ("key", "options"),
    [("alpha must be between 0 and 1, got 1.5", {"alpha": 1.5}), ("tau must be above 0, got 0.0", {"tau": 0.0})],
)
def test_impossible_values_are_named(key, options):
    with pytest.raises(UserError, match=key):
        Distilled(Fixed(TEACHER), kind="soft", **options)


def test_class_weights_weigh_the_terms_of_each_class():
    weights = RNG.uniform(0.5, 2.0, 7).astype("float32")
    expected = cross_entropy(LOGITS, TARGETS * weights)
    loss, _ = Supervised(paddle.to_tensor(weights))(Fixed(LOGITS), None, paddle.to_tensor(TARGETS))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    taught = Distilled(Fixed(TEACHER), kind="hard", alpha=0.0, class_weights=paddle.to_tensor(weights))
    loss, _ = taught(Fixed(LOGITS, OTHER), paddle.zeros([5]), paddle.to_tensor(TARGETS))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_binary_cross_entropy_asks_each_class_for_itself():
    probabilities = 1 / (1 + np.exp(-LOGITS.astype("float64")))
    expected = -(TARGETS * np.log(probabilities) + (1 - TARGETS) * np.log(1 - probabilities))
    loss, _ = Supervised(None, binary_cross_entropy)(Fixed(LOGITS), None, paddle.to_tensor(TARGETS))
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-5)
    weights = RNG.uniform(0.5, 2.0, 7).astype("float32")
    loss, _ = Supervised(paddle.to_tensor(weights), binary_cross_entropy)(
        Fixed(LOGITS), None, paddle.to_tensor(TARGETS)
    )
    assert loss.item() == pytest.approx((expected * weights).mean(), rel=1e-5)
