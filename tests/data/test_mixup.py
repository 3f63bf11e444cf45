"""Mixup and CutMix against NumPy, and their lambdas against the published distributions."""

from __future__ import annotations

import itertools
import re

import numpy as np
import paddle
import pytest

from paddlevit.config import get_config
from paddlevit.data.mixup import Mixup, SmoothTargets, build_mixup
from paddlevit.errors import UserError

MODES = ("batch", "elem", "pair")


def batch(num=6, height=12, width=10, num_classes=7, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((num, 3, height, width)).astype("float32")
    # Labels such that an image and its partner never share one, but for the middle image, which is its own partner.
    labels = np.arange(num) % num_classes
    return images, labels


def run(mixup, images, labels, key=(0, 1, 2, 0)):
    mixed, targets = mixup(paddle.to_tensor(images), paddle.to_tensor(labels), key)
    assert targets.dtype == paddle.float32
    assert mixed.shape == list(images.shape)
    return mixed.numpy(), targets.numpy()


def lambdas(num, *, mode="elem", size=(1, 1), **options):
    """The share of its own label for each of `num` images of distinct classes, first and last being partners."""
    mixup = Mixup(num_classes=2, mode=mode, smoothing=0.0, **options)
    labels = (np.arange(num) >= num // 2).astype("int64")
    _, targets = run(mixup, np.zeros((num, 1, *size), dtype="float32"), labels)
    return targets[np.arange(num), labels].astype(float)


def beta_distance(values, alpha, num=200_000):
    """Kolmogorov-Smirnov's distance to Beta(alpha, alpha), from a large sample of NumPy's legacy generator."""
    sample = np.sort(np.random.RandomState(1).beta(alpha, alpha, num))
    return np.abs(np.searchsorted(sample, np.sort(values)) / num - (np.arange(len(values)) + 0.5) / len(values)).max()


class TestMixup:
    @pytest.mark.parametrize("num", [1, 2, 5, 6])
    @pytest.mark.parametrize("mode", MODES)
    def test_images_and_targets_are_blended_alike(self, mode, num):
        images, labels = batch(num)
        mixup = Mixup(num_classes=7, mixup_alpha=0.8, cutmix_alpha=0.0, mode=mode, smoothing=0.0)
        one_hot = np.eye(7)[labels]
        for step in range(5):
            mixed, targets = run(mixup, images, labels, (0, 0, step, 0))
            lam = targets[np.arange(num), labels]
            if num % 2:
                lam[num // 2] = 0.5  # mixed with itself, whatever lambda is
            assert (lam != 1.0).all()
            if num > 1:
                blended = lam[:, None, None, None] * images + (1 - lam)[:, None, None, None] * images[::-1]
                np.testing.assert_allclose(mixed, blended, atol=1e-5)
                np.testing.assert_allclose(
                    targets, lam[:, None] * one_hot + (1 - lam)[:, None] * one_hot[::-1], atol=1e-6
                )
            else:
                np.testing.assert_allclose(mixed, images, atol=1e-6)
                np.testing.assert_allclose(targets, one_hot, atol=1e-6)

    @pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
    def test_lambda_is_beta_distributed(self, alpha):
        num = 4000
        values = lambdas(num, mixup_alpha=alpha, cutmix_alpha=0.0)
        assert beta_distance(values, alpha) < 1.95 / np.sqrt(num)
        # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
        assert abs(values.mean() - 0.5) < 5 * np.sqrt(0.25 / (2 * alpha + 1) / num)
        np.testing.assert_allclose(values.var(), 0.25 / (2 * alpha + 1), rtol=0.08)

    def test_lambda_of_a_batch_is_beta_distributed_over_steps(self):
        mixup = Mixup(num_classes=2, mixup_alpha=0.8, cutmix_alpha=0.0, smoothing=0.0)
        images, labels = np.zeros((2, 1, 1, 1), dtype="float32"), np.array([0, 1])
        values = np.array([run(mixup, images, labels, (0, 0, step, 0))[1][0, 0] for step in range(600)])
        assert beta_distance(values, 0.8) < 1.95 / np.sqrt(600)


class TestCutMix:
    def boxes(self, mixup, images, labels, key):
        """Checks that every image is its own but for a box of its partner's; yields (share outside, own label's)."""
        mixed, targets = run(mixup, images, labels, key)
        for i, (image, own, other) in enumerate(zip(mixed, images, images[::-1])):
            pasted = (image == other).all(axis=0)
            assert ((image == own).all(axis=0) | pasted).all(), "every pixel is one of the two, bit for bit"
            rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
            if len(rows):
                assert pasted.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1), "a full box"
            yield 1 - pasted.mean(), targets[i, labels[i]], (tuple(rows), tuple(columns))

    @pytest.mark.parametrize("minmax", [None, [0.2, 0.8]])
    @pytest.mark.parametrize("mode", MODES)
    def test_a_box_comes_from_the_partner_and_lambda_is_what_it_leaves(self, mode, minmax):
        images, labels = batch(6)
        mixup = Mixup(num_classes=7, mixup_alpha=0.0, cutmix_minmax=minmax, mode=mode, smoothing=0.0)
        distinct = set()
        for step in range(10):
            found = list(self.boxes(mixup, images, labels, (0, 0, step, 0)))
            for outside, share, box in found:
                np.testing.assert_allclose(share, outside, atol=1e-6)
                distinct.add(box)
            of_step = [box for _, _, box in found]
            if mode == "batch":
                assert len(set(of_step)) == 1
            if mode == "pair":
                assert of_step == of_step[::-1]
        assert len(distinct) > {"batch": 7, "pair": 20, "elem": 40}[mode]

    def test_elements_and_pairs_mix_both_ways_in_one_batch(self):
        images, labels = batch(40, num_classes=41)
        for mode in ("elem", "pair"):
            mixup = Mixup(num_classes=41, mode=mode, smoothing=0.0)
            mixed, targets = run(mixup, images, labels)
            pasted = blended = 0
            for i in range(40):
                lam, own, other = targets[i, labels[i]], images[i], images[39 - i]
                from_other = (mixed[i] == other).all(axis=0)
                if ((mixed[i] == own).all(axis=0) | from_other).all():
                    np.testing.assert_allclose(lam, 1 - from_other.mean(), atol=1e-6)
                    pasted += 1
                else:
                    np.testing.assert_allclose(mixed[i], lam * own + (1 - lam) * other, atol=1e-5)
                    blended += 1
            assert min(pasted, blended) > 8

    def test_lambda_is_distributed_as_published(self):
        """A box of sides sqrt(1 - lambda), centred anywhere, cut off at the border: simulated in NumPy."""
        num, side = 4000, 64
        values = lambdas(num, mixup_alpha=0.0, cutmix_alpha=1.0, size=(side, side))
        rng = np.random.RandomState(0)
        half = np.sqrt(1 - rng.beta(1.0, 1.0, 100_000)) / 2
        lengths = [np.minimum(c + half, 1) - np.maximum(c - half, 0) for c in rng.rand(2, 100_000)]
        simulated = 1 - lengths[0] * lengths[1]
        assert abs(values.mean() - simulated.mean()) < 5 * simulated.std() / np.sqrt(num) + 0.01
        np.testing.assert_allclose(
            np.quantile(values, [0.1, 0.5, 0.9]), np.quantile(simulated, [0.1, 0.5, 0.9]), atol=0.04
        )

    def test_boxes_lie_everywhere(self):
        mixup = Mixup(num_classes=2, mixup_alpha=0.0, mode="elem", smoothing=0.0)
        images = np.zeros((3000, 1, 16, 16), dtype="float32")
        images[1500:] = 1.0
        mixed, _ = run(mixup, images, np.zeros(3000, dtype="int64"))
        pasted = (mixed != images).mean(axis=(0, 1))
        np.testing.assert_allclose(pasted, pasted[::-1], atol=0.05)
        np.testing.assert_allclose(pasted, pasted[:, ::-1], atol=0.05)
        np.testing.assert_allclose(pasted, pasted.T, atol=0.05)
        assert pasted.min() > 0.1

    def test_boxes_have_the_shape_of_the_image(self):
        images, labels = batch(300, height=20, width=80, num_classes=301)
        mixup = Mixup(num_classes=301, mixup_alpha=0.0, mode="elem", smoothing=0.0)
        inner = 0
        for _, _, (rows, columns) in self.boxes(mixup, images, labels, (0,)):
            if rows and columns and rows[0] > 0 and rows[-1] < 19 and columns[0] > 0 and columns[-1] < 79:
                assert 4 * len(rows) <= len(columns) <= 4 * len(rows) + 3
                inner += 1
        assert inner > 30

    def test_minmax_bounds_the_sides(self):
        images, labels = batch(300, height=20, width=40, num_classes=301)
        mixup = Mixup(num_classes=301, mixup_alpha=0.0, cutmix_minmax=[0.25, 0.5], mode="elem", smoothing=0.0)
        boxes = [box for _, _, box in self.boxes(mixup, images, labels, (4,))]
        assert {len(rows) for rows, _ in boxes} == set(range(5, 11))
        assert {len(columns) for _, columns in boxes} == set(range(10, 21))
        assert {rows[0] for rows, _ in boxes} == set(range(16))

    @pytest.mark.parametrize("minmax", [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    def test_minmax_at_its_ends(self, minmax):
        images, labels = batch(6)
        mixup = Mixup(num_classes=7, mixup_alpha=0.0, cutmix_alpha=0.0, cutmix_minmax=minmax, smoothing=0.0)
        for outside, share, _ in self.boxes(mixup, images, labels, (0,)):
            np.testing.assert_allclose(share, outside, atol=1e-6)


class TestChoice:
    """On images of zeros and ones, CutMix leaves zeros and ones; mixup does not."""

    def kinds(self, num=3000, **options):
        images = np.zeros((num, 1, 8, 8), dtype="float32")
        images[num // 2 :] = 1.0
        labels = (np.arange(num) >= num // 2).astype("int64")
        mixed, targets = run(Mixup(num_classes=2, mode="elem", smoothing=0.0, **options), images, labels)
        blended = ((mixed > 0) & (mixed < 1)).any(axis=(1, 2, 3))
        same = targets[np.arange(num), labels] == 1.0
        return blended.mean(), same.mean()

    def test_switch_probability(self):
        for switch in (0.0, 0.3, 1.0):
            blended, _ = self.kinds(switch_prob=switch)
            assert abs(blended - (1 - switch)) < 5 * np.sqrt(switch * (1 - switch) / 3000) + 1e-9

    def test_only_one_of_the_two(self):
        assert self.kinds(cutmix_alpha=0.0, switch_prob=1.0)[0] == 1.0
        assert self.kinds(mixup_alpha=0.0, switch_prob=0.0)[0] == 0.0

    def test_probability_of_mixing(self):
        for prob in (0.0, 0.4):
            _, same = self.kinds(prob=prob, cutmix_alpha=0.0)
            assert abs(same - (1 - prob)) < 5 * np.sqrt(prob * (1 - prob) / 3000) + 1e-9

    def test_probability_of_mixing_a_batch(self):
        images, labels = batch(4)
        mixup = Mixup(num_classes=7, prob=0.5, smoothing=0.0)
        same = [np.array_equal(run(mixup, images, labels, (step,))[0], images) for step in range(400)]
        # Besides, a box can be empty: rarely.
        assert 0.35 < np.mean(same) < 0.68


class TestTargets:
    @pytest.mark.parametrize("num_classes", [1, 2, 10, 1000])
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("num", [1, 5, 8])
    def test_any_number_of_classes_and_images(self, num, mode, num_classes):
        images, labels = batch(num, num_classes=num_classes)
        for step in range(4):
            _, targets = run(Mixup(num_classes=num_classes, mode=mode), images, labels, (step,))
            assert targets.shape == (num, num_classes)
            np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-5)
            assert targets.min() >= 0.1 / num_classes - 1e-7

    def test_smoothing_is_spread_over_all_classes(self):
        images, labels = batch(3)
        smooth, targets = run(SmoothTargets(4, 0.1), images, labels)
        np.testing.assert_array_equal(smooth, images)
        np.testing.assert_allclose(
            targets,
            [[0.925, 0.025, 0.025, 0.025], [0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.925, 0.025]],
            atol=1e-7,
        )
        np.testing.assert_array_equal(run(SmoothTargets(4), images, labels)[1], np.eye(4)[:3])

    def test_mixed_targets_are_smoothed_the_same_way(self):
        images, labels = batch(6)
        for mode in MODES:
            _, sharp = run(Mixup(num_classes=7, mode=mode, smoothing=0.0), images, labels)
            _, smooth = run(Mixup(num_classes=7, mode=mode, smoothing=0.3), images, labels)
            np.testing.assert_allclose(smooth, sharp * 0.7 + 0.3 / 7, atol=1e-6)


class TestKey:
    @pytest.mark.parametrize("mode", MODES)
    def test_the_key_alone_decides(self, mode):
        images, labels = batch(8, num_classes=9)
        first = run(Mixup(num_classes=9, mode=mode), images, labels)
        paddle.seed(9)
        np.random.seed(9)
        again = run(Mixup(num_classes=9, mode=mode), images, labels)
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        for key in ((1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1)):
            assert not np.array_equal(first[1], run(Mixup(num_classes=9, mode=mode), images, labels, key)[1])

    @pytest.mark.parametrize(("mode", "switch"), list(itertools.product(MODES, (0.0, 1.0))))
    def test_the_input_is_left_as_it_is(self, mode, switch):
        images, labels = batch(8)
        tensors = paddle.to_tensor(images), paddle.to_tensor(labels)
        for step in range(3):
            Mixup(num_classes=8, mode=mode, switch_prob=switch)(*tensors, (step,))
        np.testing.assert_array_equal(tensors[0].numpy(), images)
        np.testing.assert_array_equal(tensors[1].numpy(), labels)


class TestBuild:
    @pytest.mark.parametrize(
        ("opts", "kind"),
        [
            ([], Mixup),
            (["TRAIN.MIXUP_ALPHA", 0.0], Mixup),
            (["TRAIN.CUTMIX_ALPHA", 0.0], Mixup),
            (["TRAIN.MIXUP_ALPHA", 0.0, "TRAIN.CUTMIX_ALPHA", 0.0], SmoothTargets),
            (["TRAIN.MIXUP_ALPHA", 0.0, "TRAIN.CUTMIX_ALPHA", 0.0, "TRAIN.CUTMIX_MINMAX", [0.2, 0.8]], Mixup),
            (["TRAIN.MIXUP_PROB", 0.0], SmoothTargets),
        ],
    )
    def test_mixup_only_where_asked_for(self, opts, kind):
        assert type(build_mixup(get_config(None, opts))) is kind

    def test_keys_are_passed_on(self):
        opts = {"MIXUP_ALPHA": 0.3, "CUTMIX_ALPHA": 0.6, "MIXUP_PROB": 0.9, "MIXUP_SWITCH_PROB": 0.2, "SMOOTHING": 0.05}
        flat = [item for key, value in opts.items() for item in (f"TRAIN.{key}", value)]
        built = build_mixup(get_config(None, [*flat, "TRAIN.MIXUP_MODE", "pair", "MODEL.NUM_CLASSES", 37]))
        assert (built.mixup_alpha, built.cutmix_alpha, built.prob, built.switch_prob) == (0.3, 0.6, 0.9, 0.2)
        assert (built.smoothing, built.mode, built.num_classes) == (0.05, "pair", 37)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("TRAIN.SMOOTHING", 1.1),
            ("TRAIN.MIXUP_PROB", -0.1),
            ("TRAIN.MIXUP_SWITCH_PROB", 2.0),
            ("TRAIN.MIXUP_ALPHA", -0.8),
            ("TRAIN.CUTMIX_MINMAX", [0.8, 0.2]),
            ("TRAIN.CUTMIX_MINMAX", [0.5]),
            ("TRAIN.CUTMIX_MINMAX", [0.5, 1.5]),
            ("MODEL.NUM_CLASSES", 0),
        ],
    )
    def test_a_wrong_key_is_named(self, key, value):
        with pytest.raises(UserError) as raised:
            build_mixup(get_config(None, [key, value]))
        assert re.search(f"{key} must .*, got {re.escape(str(value))}", str(raised.value))


def test_smoothing_without_mixing():
    opts = ["TRAIN.MIXUP_ALPHA", 0.0, "TRAIN.CUTMIX_ALPHA", 0.0, "TRAIN.SMOOTHING", 0.4, "MODEL.NUM_CLASSES", 4]
    _, targets = build_mixup(get_config(None, opts))(paddle.zeros([1, 3, 2, 2]), paddle.to_tensor([2]), (0,))
    np.testing.assert_allclose(targets.numpy(), [[0.1, 0.1, 0.7, 0.1]], atol=1e-7)


def test_the_last_epochs_may_be_without_mixing():
    images, labels = batch()
    mixup = build_mixup(get_config("pit_ti_224", ["TRAIN.MIXUP_OFF_EPOCHS", 20, "MODEL.NUM_CLASSES", 7]))
    assert not np.array_equal(run(mixup, images, labels, key=(0, 279, 0, 0))[0], images)
    mixed, targets = run(mixup, images, labels, key=(0, 280, 0, 0))
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_allclose(targets, np.eye(7)[labels] * 0.9 + 0.1 / 7, rtol=1e-6)
