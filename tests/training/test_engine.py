"""Accumulation against a large batch, resuming bit for bit, the EMA, exact evaluation, when processes meet."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from tiny import arrays, batch, network, trainer_of

from paddlevit.config import get_config
from paddlevit.data.mixup import SmoothTargets
from paddlevit.errors import UserError
from paddlevit.metrics import averages, class_scores
from paddlevit.training.ema import ModelEma
from paddlevit.training.engine import Stopped, Trainer, evaluate
from paddlevit.training.gradients import LossScale
from paddlevit.training.objectives import Supervised
from paddlevit.training.optim import build_optimizer


def tiny_trainer(*, accum_iter=1, steps=8, ema=False, seed=0):
    paddle.seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Dropout(0.2), nn.Linear(5, 3))
    return Trainer(
        model=model,
        objective=Supervised(),
        mixup=SmoothTargets(3, 0.1),
        optimizer=build_optimizer(get_config("pit_ti_224"), model),
        grad_clip=1.0,
        lr_at=lambda epoch: 0.01 * (1 + epoch),
        steps_per_epoch=steps,
        accum_iter=accum_iter,
        seed=seed,
        ema=ModelEma(model, decay=0.9) if ema else None,
    )


def batches(count, size=4, start=0):
    for i in range(start, count):
        rng = np.random.default_rng(i)
        yield (
            paddle.to_tensor(rng.standard_normal((size, 6)).astype("float32")),
            paddle.to_tensor(rng.integers(0, 3, size)),
        )


def ignore(loss, waited):
    pass


def weights(trainer):
    return {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def test_accumulation_equals_one_large_batch_even_where_the_last_group_is_smaller():
    small, large = tiny_trainer(accum_iter=4, steps=6), tiny_trainer(accum_iter=1, steps=2)
    for trainer in (small, large):
        trainer.model[2].p = 0.0
    pieces = list(batches(6, 4))
    merged = [
        tuple(paddle.concat(parts) for parts in zip(*pieces[:4])),
        tuple(paddle.concat(p) for p in zip(*pieces[4:])),
    ]
    # The learning rate is that of the first batch of a group.
    large.lr_at = lambda epoch: 0.01 * (1 + {0.0: 0.0, 0.5: 4 / 6}[epoch])
    small.train_epoch(pieces, ignore)
    large.train_epoch(merged, ignore)
    assert (small.updates, large.updates) == (2, 2)
    assert_same(weights(small), weights(large), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_a_stopped_and_restored_trainer_goes_on_bit_for_bit(stop_after):
    whole = tiny_trainer(ema=True)
    for _ in range(2):
        whole.train_epoch(batches(8), ignore)

    first = tiny_trainer(ema=True)

    def stop(loss, waited):
        if first.step == stop_after:
            first.stop_signal = 15

    with pytest.raises(Stopped):
        first.train_epoch(batches(8), stop)
    state = first.state()
    saved = {key: {name: value.numpy().copy() for name, value in state[key].items()} for key in ("model", "ema")}

    nn.Linear(2, 2)  # another number of layers was built before
    second = tiny_trainer(ema=True)
    second.model.set_state_dict(saved["model"])
    second.ema.model.set_state_dict(saved["ema"])
    second.load_state(state["optimizer"], state["progress"])
    assert (second.epoch, second.step) == (0, stop_after)
    second.train_epoch(batches(8, start=stop_after), ignore)
    second.train_epoch(batches(8), ignore)
    assert_same(weights(second), weights(whole))
    assert_same(
        {name: value.numpy() for name, value in second.ema.model.state_dict().items()},
        {name: value.numpy() for name, value in whole.ema.model.state_dict().items()},
    )


def test_the_learning_rate_is_that_of_the_step_which_a_batch_belongs_to():
    trainer, rates = tiny_trainer(accum_iter=3, steps=6), []
    trainer.lr_at = lambda epochs: 1.0 + epochs
    for images, labels in batches(6):
        trainer.train_step(images, labels)
        rates.append(trainer.lr)
    assert rates == [1.0] * 3 + [1.5] * 3


def test_another_accumulation_in_the_middle_of_an_epoch_is_refused():
    first, again = tiny_trainer(accum_iter=2), tiny_trainer(accum_iter=4)
    first.fixed, again.fixed = {"SEED": 0, "TRAIN.ACCUM_ITER": 2}, {"SEED": 0, "TRAIN.ACCUM_ITER": 4}
    for images, labels in batches(2):
        first.train_step(images, labels)
    state = first.state()
    with pytest.raises(UserError, match="step 2.*ACCUM_ITER 2, now it is 4"):
        again.load_state(state["optimizer"], state["progress"])
    again.load_state(state["optimizer"], {**state["progress"], "step": 0})


def test_another_seed_draws_other_dropout():
    one, same, other = tiny_trainer(seed=0), tiny_trainer(seed=0), tiny_trainer(seed=1)
    for trainer in (one, same, other):
        trainer.train_epoch(batches(8), ignore)
    assert_same(weights(one), weights(same))
    assert not np.array_equal(weights(one)["0.weight"], weights(other)["0.weight"])


def test_ema_follows_every_optimizer_step_and_warms_up():
    trainer = tiny_trainer(accum_iter=2, ema=True)
    start = weights(trainer)["3.bias"].astype("float64")
    average, steps = start, 0

    for images, labels in batches(8):
        trainer.train_step(images, labels)
        if trainer.step % 2 == 0:
            steps += 1
            decay = min(0.9, (1 + steps) / (10 + steps))
            average = decay * average + (1 - decay) * weights(trainer)["3.bias"]
    assert steps == trainer.updates == 4
    np.testing.assert_allclose(trainer.ema.model.state_dict()["3.bias"].numpy(), average, rtol=1e-5, atol=1e-7)


def test_ema_of_a_weight_that_stays_the_same_stays_the_same():
    model = nn.Linear(50, 50)
    average = ModelEma(model, decay=0.999)
    for step in range(1, 200):
        average.update(step)
    np.testing.assert_array_equal(average.model.weight.numpy(), model.weight.numpy())


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_gradients_are_clipped_by_one_norm_over_all_parameters(limit):
    free, clipped = tiny_trainer(), tiny_trainer()
    free.grad_clip, clipped.grad_clip = None, limit
    seen = {}
    for name, trainer in (("free", free), ("clipped", clipped)):
        trainer.optimizer.step = lambda name=name, trainer=trainer: seen.update(
            {name: [param.grad.numpy().astype("float64") for param in trainer.model.parameters()]}
        )
        trainer.train_step(*next(iter(batches(1))))
    norm = np.sqrt(sum((gradient**2).sum() for gradient in seen["free"]))
    for gradient, expected in zip(seen["clipped"], seen["free"]):
        np.testing.assert_allclose(gradient, expected * min(1.0, limit / norm), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_evaluation_is_exact_whatever_the_batch_size(size):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((101, 6)).astype("float32"), rng.integers(0, 9, 101)
    model = nn.Linear(6, 9)
    loader = [
        (paddle.to_tensor(images[i : i + size]), paddle.to_tensor(labels[i : i + size])) for i in range(0, 101, size)
    ]
    seen = []
    from sklearn import metrics

    result = evaluate(model, loader, on_batch=lambda logits: seen.append(len(logits)))
    logits = images.astype("float64") @ model.weight.numpy() + model.bias.numpy()
    order = np.argsort(-logits, axis=1)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert result["num_images"] == sum(seen) == 101
    assert result["acc1"] == pytest.approx(100 * (order[:, 0] == labels).mean(), abs=1e-9)
    assert result["acc5"] == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).mean(), abs=1e-9)
    assert result["loss"] == pytest.approx(-log_probs[np.arange(101), labels].mean(), rel=1e-6)
    assert result["balanced_acc"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, order[:, 0]))
    assert result["macro_f1"] == pytest.approx(100 * metrics.f1_score(labels, order[:, 0], average="macro"))
    assert model.training


@pytest.mark.filterwarnings("ignore:y_pred contains classes")  # scikit-learn's
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_scores_of_classes_are_those_of_scikit_learn(pairs):
    from sklearn import metrics

    labels, predicted = np.array(pairs).T
    counts = [np.bincount(each, minlength=6) for each in (labels, predicted, labels[labels == predicted])]
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=range(6), zero_division=0)
    found = class_scores(*counts)
    for key, values in zip(("precision", "recall", "f1"), expected):
        np.testing.assert_allclose(found[key], 100 * values, rtol=1e-12)
    average = averages(*counts)
    assert average["balanced_acc"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, predicted))
    macro = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert average["macro_f1"] == pytest.approx(100 * macro)


def test_an_image_without_finite_logits_is_wrong():
    """topk takes the same classes for all of them, which many images may be of."""
    labels = paddle.arange(9)
    for value, right in ((float("nan"), 0.0), (float("inf"), 0.0), (1.0, 100.0)):
        logits = F.one_hot(labels, 9) * 2 - 1 + paddle.zeros([9, 9])
        logits = paddle.where(logits > 0, logits * value, logits)
        result = evaluate(nn.Identity(), [(logits, labels)])
        assert [result[key] for key in ("acc1", "acc5", "balanced_acc", "macro_f1")] == [right] * 4
    logits = paddle.where(logits > 0, logits, paddle.full([9, 9], -float("inf")))
    assert evaluate(nn.Identity(), [(logits, labels)])["acc1"] == 100.0, "the other classes were left out"


def test_fewer_than_five_classes():
    model = nn.Linear(6, 3)
    result = evaluate(model, batches(3))
    assert result["acc5"] == 100.0


class Synchronised(nn.Layer):
    """Stands in for DataParallel and notes which forward and backward passes would meet other processes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.alone, self.forwards, self.backwards = model, False, [], []
        model.parameters()[0].register_hook(lambda gradient: self.backwards.append(not self.alone))

    def forward(self, images):
        self.forwards.append(not self.alone)
        return self.model(images)

    @contextlib.contextmanager
    def no_sync(self):
        self.alone = True
        yield
        self.alone = False


def test_processes_meet_once_per_optimizer_step():
    model = network()
    together = Synchronised(model)
    trainer = trainer_of(model, forward=together, accum_iter=3)
    trainer.steps_per_epoch = 7
    trainer.train_epoch(map(batch, range(7)), lambda loss, waited: None)
    assert together.forwards == together.backwards == [False, False, True, False, False, True, True]


def test_processes_seldom_ask_each_other(monkeypatch):
    asked_at = set()
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    trainer = trainer_of(network())
    trainer.steps_per_epoch = 40
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **options: asked_at.add((trainer.epoch, trainer.step)))
    trainer.train_epoch(map(batch, range(40)), lambda loss, waited: None)
    assert {(0, 16), (0, 32)} <= asked_at <= {(0, 16), (0, 32), (1, 0)}, "whether to stop, and at the epoch's end"


def test_the_loss_scale_is_taken_off_once_per_optimizer_step():
    ends = []
    for dynamic in (False, True):
        model = network()
        trainer = trainer_of(model, accum_iter=3, loss_scale=LossScale(dynamic=dynamic))
        for seed in range(6):
            trainer.train_step(*batch(seed))
        ends.append(arrays(model))
    for name in ends[0]:
        np.testing.assert_allclose(ends[1][name], ends[0][name], rtol=1e-5, atol=1e-6, err_msg=name)
