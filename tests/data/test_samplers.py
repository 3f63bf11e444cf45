"""Which images are in which batch: properties that hold for every size, number of processes and epoch."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlevit.data.loader import EvalLoader, TrainBatchSampler, train_order
from paddlevit.errors import UserError
from paddlevit.runtime.seeding import SAMPLES, generator

SEEDS = st.integers(0, 2**40)


@given(num=st.integers(1, 500), seed=SEEDS, epoch=st.integers(0, 400), repeats=st.integers(1, 4))
def test_train_order(num, seed, epoch, repeats):
    order = train_order(num, seed, epoch=epoch, repeats=repeats)
    assert len(order) == num and order.min() >= 0 and order.max() < num
    assert len(set(order.tolist())) == -(-num // repeats)
    assert (order == np.repeat(order[::repeats], repeats)[:num]).all(), "copies stand together"
    assert (order == train_order(num, seed, epoch=epoch, repeats=repeats)).all()


def test_train_order_differs_between_epochs_and_seeds():
    orders = [tuple(train_order(100, seed, epoch=epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_every_image_comes_first_equally_often():
    firsts = Counter(int(train_order(4, 0, epoch=epoch)[0]) for epoch in range(4000))
    assert all(900 < count < 1100 for count in firsts.values()) and len(firsts) == 4


@st.composite
def settings(draw):
    world_size, per_process = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    num = draw(st.integers(world_size * per_process, world_size * per_process * 5))
    return {
        "num": num,
        "batch": per_process,
        "world_size": world_size,
        "seed": draw(SEEDS),
        "repeats": draw(st.integers(1, 4)),
    }


def ranks(num, batch, world_size, seed, repeats):
    return [
        TrainBatchSampler(num, batch, rank=rank, world_size=world_size, seed=seed, repeats=repeats)
        for rank in range(world_size)
    ]


@given(given=settings(), epoch=st.integers(0, 300))
def test_a_step_has_the_same_samples_for_every_number_of_processes(given, epoch):
    several = ranks(**given)
    (alone,) = ranks(**{**given, "batch": given["batch"] * given["world_size"], "world_size": 1})
    expected = list(alone.batches(epoch))
    shares = [list(sampler.batches(epoch)) for sampler in several]
    assert len(expected) == len(alone) == given["num"] // (given["batch"] * given["world_size"])
    for step, images in enumerate(expected):
        parts = [share[step] for share in shares]
        assert all(len(part) == given["batch"] for part in parts)
        assert sorted(sum(parts, [])) == sorted(images)
        if given["repeats"] == 1:
            assert sum(parts, []) == images
    samples = sum(expected, [])
    order = train_order(given["num"], given["seed"], epoch=epoch, repeats=given["repeats"])
    assert samples == [(order[i], (given["seed"], epoch, i)) for i in range(len(samples))]


@given(given=settings())
def test_copies_of_an_image_go_to_different_processes(given):
    shares = [sum(sampler.batches(0), []) for sampler in ranks(**given)]
    holder = {key[2]: rank for rank, share in enumerate(shares) for _, key in share}
    image = {key[2]: index for share in shares for index, key in share}
    for position in sorted(holder):
        if given["repeats"] > 1 and given["world_size"] > 1 and image.get(position + 1) == image[position]:
            assert holder[position] != holder[position + 1]


@given(given=settings(), epoch=st.integers(0, 300), data=st.data())
def test_going_on_within_an_epoch(given, epoch, data):
    sampler = ranks(**given)[-1]
    first = data.draw(st.integers(0, len(sampler)))
    assert list(sampler.batches(epoch, first)) == list(sampler.batches(epoch))[first:]


def test_small_data_sets_have_repeated_augmentation_too():
    sampler = TrainBatchSampler(100, 30, repeats=3)
    assert [len(batch) for batch in sampler.batches(0)] == [30, 30, 30]


def test_fewer_images_than_a_step_takes():
    with pytest.raises(UserError) as caught:
        TrainBatchSampler(100, 30, world_size=4)
    assert "100 training images" in str(caught.value)
    assert "30 x 4 processes = 120" in str(caught.value) and "-batch_size" in str(caught.value)


def test_a_samples_draws_stay_what_they_are():
    """In every version: a run that is resumed by a later one goes on with the same images."""
    drawn = [generator(key, SAMPLES).random() for key in ((3, 1, 7), (3, 1, 7), (3, 1, 8))]
    assert drawn[0] == drawn[1] == 0.2126788725244666 != drawn[2]


class Numbers(list):
    class_names = ()


@given(num=st.integers(0, 200), batch=st.integers(1, 30), world_size=st.integers(1, 9))
def test_evaluation_takes_every_image_once(num, batch, world_size):
    seen = []
    numbers = []
    for rank in range(world_size):
        stream = SimpleNamespace(dataset=SimpleNamespace(source=Numbers(range(num))), run=lambda batches, _: batches)
        sampler = EvalLoader(stream, batch, normalize=None, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        numbers.append((len(sampler), sampler.common_batches))
        assert all(len(samples) == batch for samples in batches[:-1])
        assert [index for samples in batches for index, _ in samples] == sampler.indices.tolist()
        assert all(key is None and samples for samples in batches for _, key in samples)
        seen += sampler.indices.tolist()
    assert sorted(seen) == list(range(num))
    assert {common for _, common in numbers} == {min(own for own, _ in numbers)}
