"""Random erasing: what is written, where, how often, and that the key alone decides."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from paddlevit.config import get_config
from paddlevit.data import mixup
from paddlevit.data.mixup import RandomErasing, build_erasing
from paddlevit.errors import UserError

UNTOUCHED = 7.0


def erased(num=64, channels=3, height=32, width=24, key=(0, 1, 2, 0), **options):
    """(images after erasing [N, C, H, W], where they changed [N, H, W])."""
    images = paddle.full([num, channels, height, width], UNTOUCHED)
    result = RandomErasing(**{"prob": 1.0, **options})(images, key).numpy()
    changed = (result != UNTOUCHED).any(axis=1)
    np.testing.assert_array_equal((result != UNTOUCHED).all(axis=1), changed)
    return result, changed


def bounds(mask):
    """(top, left, height, width) of the pixels of a mask, which must be a full rectangle."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert mask.sum() == height * width
    return rows[0], columns[0], height, width


def published(height, width, num, rng):
    """Rectangles by algorithm 1 with the recipes' bounds, one try after the other."""
    result = []
    while len(result) < num:
        for _ in range(10):
            area = (0.02 + (1 / 3 - 0.02) * rng.random()) * height * width
            ratio = 0.3 * (1 / 0.3 / 0.3) ** rng.random()
            h, w = int(round((area * ratio) ** 0.5)), int(round((area / ratio) ** 0.5))
            if h < height and w < width:
                result.append((rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w))
                break
    return np.array(result, dtype=float)


class TestWhere:
    def test_one_full_rectangle_an_image(self):
        _, changed = erased()
        for mask in changed:
            top, left, height, width = bounds(mask)
            assert 0.018 < height * width / (32 * 24) < 0.35
            assert 0.25 < height / width < 4.0

    @pytest.mark.parametrize("size", [(224, 224), (100, 180)])
    def test_rectangles_are_distributed_as_published(self, size):
        """Two samples of one distribution: Kolmogorov-Smirnov's distance of every figure that matters."""
        num = 4000
        rng, eraser = np.random.default_rng(1), RandomErasing(prob=1.0)
        ours = np.array([next(eraser.rectangles(*size, rng)) for _ in range(num)], dtype=float)
        theirs = published(*size, num, np.random.default_rng(2))

        def figures(rectangles):
            top, left, h, w = rectangles.T
            return {"area": h * w, "ratio": h / w, "y": top / (size[0] - h), "x": left / (size[1] - w)}

        for name, values in figures(ours).items():
            other = figures(theirs)[name]
            points = np.concatenate([values, other])
            distance = np.abs(
                np.searchsorted(np.sort(values), points, side="right")
                - np.searchsorted(np.sort(other), points, side="right")
            ).max()
            assert distance / num < 1.95 * np.sqrt(2 / num), name

    def test_area_and_ratio_without_refusals(self, monkeypatch):
        """In a square, a ratio near 1 always fits: the area is uniform and the ratio log-uniform."""
        monkeypatch.setattr(mixup, "_RATIO", (0.5, 2.0))
        rng, num = np.random.default_rng(3), 4000
        _, _, h, w = np.array([next(RandomErasing(prob=1.0).rectangles(3000, 3000, rng)) for _ in range(num)]).T
        uniform = {
            "area": (h * w / 9e6 - 0.02) / (1 / 3 - 0.02),
            "ratio": np.log(h / w) / math.log(4) + 0.5,
        }
        for name, values in uniform.items():
            assert np.abs(np.sort(values) - (np.arange(num) + 0.5) / num).max() < 1.95 / np.sqrt(num), name

    @pytest.mark.parametrize("prob", [0.25, 0.8])
    def test_images_are_chosen_with_the_probability(self, prob):
        _, changed = erased(num=2000, channels=1, height=8, width=8, prob=prob)
        share = changed.any(axis=(1, 2)).mean()
        assert abs(share - prob) < 5 * math.sqrt(prob * (1 - prob) / 2000)

    def test_several_rectangles_share_the_area(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            rectangles = list(RandomErasing(prob=1.0, count=3).rectangles(200, 200, rng))
            assert len(rectangles) == 3
            for _, _, h, w in rectangles:
                assert 0.0195 / 3 < h * w / 200**2 < 0.336 / 3
        _, changed = erased(count=3, height=64, width=64)
        assert max(mask.mean() for mask in changed) < 0.34

    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 2), (3, 1)])
    def test_images_too_small_for_a_rectangle_stay(self, size):
        erased(num=8, height=size[0], width=size[1])
        _, changed = erased(num=8, height=1, width=50)
        assert not changed.any()


class TestWhat:
    def test_pixel_writes_a_normal_number_per_value(self):
        result, changed = erased(num=200)
        values = np.moveaxis(result, 1, -1)[changed]
        assert abs(values.mean()) < 5 / math.sqrt(values.size)
        assert abs(values.var() - 1.0) < 5 * math.sqrt(2 / values.size)
        below = [(values < x).mean() for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
        np.testing.assert_allclose(below, [0.0228, 0.1587, 0.5, 0.8413, 0.9772], atol=0.01)
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.03
        for image, mask in zip(result, changed):
            assert len(np.unique(image[:, mask])) > 0.99 * mask.sum() * 3
        assert len(np.unique(values)) > 0.9 * values.size, "rectangles seldom share numbers of the pool"

    def test_rand_writes_one_colour_per_rectangle(self):
        result, changed = erased(num=400, mode="rand")
        colours = np.array([image[:, mask].T[0] for image, mask in zip(result, changed)])
        for image, mask, colour in zip(result, changed, colours):
            assert (image[:, mask] == colour[:, None]).all()
        assert len(np.unique(colours)) == colours.size
        assert abs(colours.mean()) < 5 / math.sqrt(colours.size)
        assert abs(colours.std() - 1.0) < 0.15

    def test_const_writes_zero(self):
        result, changed = erased(mode="const")
        assert (np.moveaxis(result, 1, -1)[changed] == 0.0).all()
        assert changed.any(axis=(1, 2)).all()

    @pytest.mark.parametrize("channels", [1, 3, 4])
    @pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
    def test_any_number_of_channels(self, mode, channels):
        result, changed = erased(num=5, channels=channels, mode=mode)
        assert result.shape == (5, channels, 32, 24)
        assert changed.any()

    def test_single_precision_stays(self):
        images = RandomErasing(prob=1.0)(paddle.zeros([4, 3, 16, 16]), (1, 2))
        assert images.dtype == paddle.float32


class TestKey:
    @pytest.mark.parametrize("mode", ["pixel", "rand"])
    def test_the_key_alone_decides(self, mode):
        first, _ = erased(mode=mode, prob=0.5)
        paddle.seed(3)
        np.random.seed(3)
        again, _ = erased(mode=mode, prob=0.5)
        np.testing.assert_array_equal(first, again)
        for key in ((1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1)):
            assert not np.array_equal(first, erased(mode=mode, prob=0.5, key=key)[0])

    def test_an_object_in_use_gives_what_a_new_one_gives(self):
        used = RandomErasing(prob=1.0)
        used(paddle.zeros([4, 3, 16, 16]), (9, 9))
        used(paddle.zeros([4, 3, 40, 40]), (9, 9))
        expected = RandomErasing(prob=1.0)(paddle.zeros([4, 3, 16, 16]), (5, 5))
        np.testing.assert_array_equal(used(paddle.zeros([4, 3, 16, 16]), (5, 5)).numpy(), expected.numpy())

    def test_the_pool_grows_with_the_images(self, monkeypatch):
        monkeypatch.setattr(mixup, "_POOL_SIZE", 1)
        used = RandomErasing(prob=1.0)
        for side in (8, 40, 16):
            assert (used(paddle.zeros([4, 3, side, side]), (9, 9)).numpy() != 0).any()

    @pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
    def test_an_array_is_erased_as_a_tensor_is(self, mode):
        array = np.full([16, 3, 24, 20], UNTOUCHED, dtype="float32")
        erase = RandomErasing(prob=0.8, mode=mode, count=2)
        tensor = RandomErasing(prob=0.8, mode=mode, count=2)(paddle.to_tensor(array), (4, 2))
        assert erase(array, (4, 2)) is array and (array != UNTOUCHED).any()
        np.testing.assert_array_equal(array, tensor.numpy())

    def test_the_batch_is_written_in_place(self):
        images = paddle.zeros([4, 3, 16, 16])
        assert RandomErasing(prob=1.0)(images, (0,)) is images
        assert (images.numpy() != 0).any()


class TestBuild:
    def test_what_the_keys_ask_for(self):
        built = build_erasing(get_config(None, ["TRAIN.RANDOM_ERASE_MODE", "rand", "TRAIN.RANDOM_ERASE_COUNT", 2]))
        assert (built.prob, built.mode, built.count) == (0.25, "rand", 2)
        images = paddle.ones([8, 3, 16, 16])
        assert (build_erasing(get_config(None, ["TRAIN.RANDOM_ERASE_PROB", 0.0]))(images, (0, 0)) == 1).all()

    @pytest.mark.parametrize(
        ("key", "value"),
        [("RANDOM_ERASE_PROB", 1.5), ("RANDOM_ERASE_PROB", -0.25), ("RANDOM_ERASE_COUNT", 0)],
    )
    def test_a_wrong_key_is_named(self, key, value):
        with pytest.raises(UserError, match=f"TRAIN.{key} must .*, got {value}"):
            build_erasing(get_config(None, [f"TRAIN.{key}", value]))
