"""Training meets numbers that are not finite: the step is left out, counted and named, and nothing is spoilt."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from tiny import arrays, batch, network, trainer_of

from paddlevit.data.mixup import Mixup, RandomErasing
from paddlevit.errors import UserError
from paddlevit.training.engine import Stopped
from paddlevit.training.gradients import LossScale
from paddlevit.training.journal import Journal
from paddlevit.training.objectives import Distilled


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_moves_no_weight_and_spoils_neither_ema_nor_statistics(bad, dynamic):
    model = network()
    trainer = trainer_of(model, loss_scale=LossScale(dynamic=dynamic))
    for seed in range(3):
        trainer.train_step(*batch(seed))
    assert trainer.read_skipped() == 0
    before = arrays(model)
    assert not np.isfinite(trainer.train_step(*batch(3, bad)).item())
    assert not np.isfinite(model[1]._mean.numpy()).all(), "the case is one that spoils the statistics"
    assert trainer.read_skipped() == 1
    after = arrays(model)
    for name in before:
        assert np.isfinite(after[name]).all(), name
        if not name.endswith(("_mean", "_variance")):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    trainer.train_step(*batch(4))
    assert trainer.read_skipped() == 0
    assert not np.array_equal(arrays(model)["4.weight"], before["4.weight"])
    assert all(np.isfinite(value).all() for value in arrays(trainer.ema.model).values())


def test_a_stop_after_a_bad_batch_saves_finite_statistics():
    """The weights are saved before the log would have looked for steps that were left out."""
    trainer = trainer_of(network())
    trainer.train_step(*batch(0))
    trainer.read_skipped()
    good = arrays(trainer.model)["1._mean"]
    trainer.train_step(*batch(1, np.nan))
    trainer.stop_signal = 15
    with pytest.raises(Stopped):
        trainer.check_stop()
    np.testing.assert_array_equal(trainer.state()["model"]["1._mean"].numpy(), good)


def test_statistics_are_mended_with_those_that_were_loaded():
    trainer = trainer_of(network())
    trainer.model[1]._mean.fill_(7.0)  # as from a checkpoint
    trainer.load_state({}, trainer.state()["progress"])
    trainer.train_step(*batch(0, np.nan))
    trainer.read_skipped()
    np.testing.assert_array_equal(arrays(trainer.model)["1._mean"], 7.0)


def test_the_first_step_can_be_left_out():
    model = network()
    before = arrays(model)["0.weight"]
    trainer = trainer_of(model)
    trainer.train_step(*batch(0, np.nan))
    np.testing.assert_array_equal(arrays(model)["0.weight"], before)


def test_a_bad_batch_spoils_the_whole_group_that_it_is_accumulated_with():
    model = network()
    before = arrays(model)["0.weight"]
    trainer = trainer_of(model, accum_iter=2)
    trainer.train_step(*batch(0, np.nan))
    trainer.train_step(*batch(1))
    np.testing.assert_array_equal(arrays(model)["0.weight"], before)
    trainer.train_step(*batch(2))
    trainer.train_step(*batch(3))
    assert trainer.read_skipped() == 1
    assert not np.array_equal(arrays(model)["0.weight"], before)


def test_too_many_in_a_row_end_training():
    trainer = trainer_of(network(), max_nonfinite=3)
    assert trainer.read_skipped() == 0
    for seed, bad in enumerate([np.nan, np.nan, None, np.nan, np.nan]):
        trainer.train_step(*batch(seed, bad))
    assert trainer.read_skipped() == 4
    trainer.train_step(*batch(9, np.nan))
    with pytest.raises(UserError, match="3 steps in a row.*MAX_NONFINITE is 3.*TRAIN.BASE_LR"):
        trainer.read_skipped()


@pytest.fixture
def reads(monkeypatch):
    """Every reading of a tensor by the host."""
    found = []
    for name in ("numpy", "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__array__", "cpu"):
        original = getattr(paddle.Tensor, name)

        def spy(tensor, *args, name=name, original=original, **kwargs):
            found.append(name)
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(paddle.Tensor, name, spy)
    return found


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_step_waits_for_the_device(reads, dynamic):
    model = network()
    trainer = trainer_of(model, accum_iter=2, grad_clip=1.0, loss_scale=LossScale(dynamic=dynamic))
    data = [batch(seed) for seed in range(6)]
    for step, (images, labels) in enumerate(data):
        if step == 2:  # by then everything is built
            reads.clear()
        trainer.train_step(images, labels)
    assert reads == []
    trainer.read_skipped()
    assert reads, "the count is able to see one"


@pytest.mark.parametrize(("mode", "kind"), [("batch", "hard"), ("elem", "soft"), ("pair", "soft")])
def test_no_part_of_a_step_waits_for_the_device(reads, tmp_path, mode, kind):
    """Nor mixing, distilling, erasing, and noting the loss."""
    trainer = trainer_of(network(), accum_iter=2)
    trainer.mixup, trainer.objective = Mixup(num_classes=3, mode=mode), Distilled(network(), kind=kind)
    erase = RandomErasing(prob=1.0)
    journal = Journal(tmp_path / "lines", report_freq=6, num_epochs=1, steps_per_epoch=6, images_per_batch=4)
    journal.start_epoch(1, 0)
    for step in range(6):
        images, labels = batch(step)
        if step == 2:  # by then everything is built
            reads.clear()
        loss = trainer.train_step(erase(images, (0, 0, step, 0)), labels)
        assert step < 2 or reads == []
        journal.step(loss, 0.0, trainer.lr)
        assert step in (0, 1, 5) or reads == []
    assert reads, "the line of the log reads the losses"
