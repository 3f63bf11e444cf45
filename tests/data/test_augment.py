"""Every operation at every level against NumPy, and what is drawn against what is published."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from augment_reference import AUTO_REFERENCE, RAND_REFERENCE, brightness, color, contrast
from PIL import Image

from paddlevit.config import get_config
from paddlevit.data import augment
from paddlevit.data.augment import (
    AUTO_AUGMENT_POLICY,
    AutoAugment,
    ColorJitter,
    Draw,
    RandAugment,
    ThreeAugment,
    build_augmentation,
    mean_color,
    operations,
    perform,
)

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
FILL = (124, 116, 104)
RAND_AUGMENT_OPS = operations(increasing=True)
AUTO_AUGMENT_OPS = operations(increasing=False)


def generator(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def picture(width=29, height=23, channels=3, seed=0):
    """Pixels [H, W, C] from 20 to 199, so that stretching the contrast changes them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([110 + 70 * np.sin(x / (3 + c) + c) * np.cos(y / (4 + c)) for c in range(channels)], axis=-1)
    return (waves + rng.normal(0, 9, waves.shape)).clip(20, 199).astype(np.uint8)


def to_image(pixels):
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def to_pixels(image):
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


class TestOperations:
    def test_the_set_is_that_of_the_increasing_variant(self):
        names = "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast Brightness Sharpness"
        assert list(RAND_AUGMENT_OPS) == f"{names} ShearX ShearY TranslateX TranslateY".split()
        assert RAND_REFERENCE.keys() == RAND_AUGMENT_OPS.keys() == AUTO_AUGMENT_OPS.keys()

    @pytest.mark.parametrize("level", [*range(11), 8.6403])
    @pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
    @pytest.mark.parametrize("kind", ["rand", "auto"])
    def test_every_operation_at_every_level(self, kind, name, level):
        op, reference = {"rand": (RAND_AUGMENT_OPS, RAND_REFERENCE), "auto": (AUTO_AUGMENT_OPS, AUTO_REFERENCE)}[kind]
        for channels, fill in ((3, FILL), (1, 115)):
            pixels = picture(channels=channels)
            for draw in (Draw(1.0, BILINEAR, fill), Draw(-1.0, BICUBIC, fill)):
                image = perform(op[name], to_image(pixels), float(level), draw)
                assert image.mode == ("RGB" if channels == 3 else "L")
                result, expected = to_pixels(image), reference[name](pixels, float(level), draw)
                if name == "Rotate":
                    # Pillow rounds the matrix to 15 digits: a value may fall to the other side of a whole number.
                    assert np.abs(result.astype(int) - expected).max() <= 1
                    assert (result != expected).mean() < 0.005
                else:
                    np.testing.assert_array_equal(result, expected)

    @pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
    def test_higher_levels_change_more(self, name):
        pixels = picture()
        change = [
            np.abs(
                to_pixels(perform(RAND_AUGMENT_OPS[name], to_image(pixels), level, Draw(1.0, BILINEAR, FILL)))
                - pixels.astype(int)
            )
            for level in (2.0, 9.0)
        ]
        if name in ("AutoContrast", "Equalize", "Invert"):
            np.testing.assert_array_equal(change[0], change[1])
        else:
            assert change[0].mean() < change[1].mean()

    @pytest.mark.parametrize(
        "name", sorted(set(RAND_AUGMENT_OPS) - {"AutoContrast", "Equalize", "Invert", "Posterize"})
    )
    def test_level_0_is_the_identity(self, name):
        pixels = picture()
        unchanged = perform(RAND_AUGMENT_OPS[name], to_image(pixels), 0.0, Draw(1.0, BICUBIC, FILL))
        np.testing.assert_array_equal(to_pixels(unchanged), pixels)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
    @pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
    def test_tiny_images(self, name, size):
        for channels, fill in ((3, FILL), (1, 115)):
            for ops in (RAND_AUGMENT_OPS, AUTO_AUGMENT_OPS):
                image = to_image(picture(*size, channels=channels))
                assert perform(ops[name], image, 9.0, Draw(-1.0, BICUBIC, fill)).size == size

    def test_mirrored_images_turn_the_other_way(self):
        """A flip before and after is the other sign, so neither side is favoured."""
        flip = Image.Transpose.FLIP_LEFT_RIGHT
        image = to_image(picture(28, 28))
        for name in ("Rotate", "TranslateX"):
            op = RAND_AUGMENT_OPS[name]
            there = perform(op, image.transpose(flip), 7.0, Draw(1.0, BILINEAR, FILL)).transpose(flip)
            back = perform(op, image, 7.0, Draw(-1.0, BILINEAR, FILL))
            assert np.abs(np.asarray(there).astype(int) - np.asarray(back)).max() <= 1

    def test_what_comes_from_outside_has_the_fill_color(self):
        image = to_image(picture())
        moved = to_pixels(perform(RAND_AUGMENT_OPS["TranslateX"], image, 10.0, Draw(-1.0, BICUBIC, FILL)))
        assert (moved[:, : int(0.45 * 29)] == FILL).all()


@pytest.fixture
def recorded(monkeypatch):
    """Calls (name, level, draw) of the operations, which change nothing."""
    calls = []

    def record(name, image, level, draw):
        calls.append((name, level, draw))
        return image

    monkeypatch.setattr(augment, "RAND_OPS", list(RAND_AUGMENT_OPS))
    monkeypatch.setattr(augment, "AUTO_OPS", {name: name for name in AUTO_AUGMENT_OPS})
    monkeypatch.setattr(augment, "perform", record)
    return calls


def near(count, num, probability):
    """Within five standard deviations of a binomial."""
    return abs(count - num * probability) < 5 * np.sqrt(num * probability * (1 - probability)) + 1e-9


class TestRandAugment:
    def run(self, num, **changes):
        values = {"layers": 2, "magnitude": 9, "std": 0.5, "fill": FILL, **changes}
        transform, rng, image = RandAugment(**values), generator(), Image.new("RGB", (2, 2))
        for _ in range(num):
            transform(image, rng)

    def test_operations_come_equally_often_and_half_are_applied(self, recorded):
        self.run(8000)
        assert near(len(recorded), 16000, 0.5)
        for name, count in Counter(name for name, _, _ in recorded).items():
            assert near(count, 16000, 0.5 / 15), name
        assert len({name for name, _, _ in recorded}) == 15

    def test_an_operation_may_come_twice(self, recorded):
        applied, twice = 0, 0
        for seed in range(3000):
            recorded.clear()
            RandAugment(layers=2, magnitude=9, std=0.5, fill=FILL)(Image.new("RGB", (2, 2)), generator(seed))
            applied += len(recorded) == 2
            twice += len(recorded) == 2 and recorded[0][0] == recorded[1][0]
        assert near(applied, 3000, 0.25)
        assert near(twice, 3000, 0.25 / 15)

    def test_levels_are_normal_and_clipped(self, recorded):
        self.run(8000)
        levels = np.array([level for _, level, _ in recorded])
        assert levels.max() == 10.0
        assert near((levels == 10.0).sum(), len(levels), 0.02275)
        assert near((levels < 8.5).sum(), len(levels), 0.15866)
        assert near((levels < 9.0).sum(), len(levels), 0.5)

    def test_levels_do_not_fall_below_0(self, recorded):
        self.run(2000, magnitude=0)
        levels = np.array([level for _, level, _ in recorded])
        assert levels.min() == 0.0
        assert near((levels == 0.0).sum(), len(levels), 0.5)

    def test_without_deviation_the_level_is_fixed(self, recorded):
        self.run(200, magnitude=7, std=0.0)
        assert {level for _, level, _ in recorded} == {7.0}

    @pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
    def test_both_directions_come_half_of_the_time_and_the_filter_is_given(self, recorded, resample):
        self.run(8000, resample=resample)
        draws = Counter(draw.sign for _, _, draw in recorded)
        assert set(draws) == {-1.0, 1.0}
        assert all(near(count, len(recorded), 0.5) for count in draws.values())
        assert {draw.resample for _, _, draw in recorded} == {resample}
        assert {draw.fill for _, _, draw in recorded} == {FILL}

    @pytest.mark.parametrize("layers", [1, 3])
    def test_layers(self, recorded, layers):
        self.run(2000, layers=layers)
        assert near(len(recorded), 2000 * layers, 0.5)


class TestAutoAugment:
    def test_the_policy_is_the_published_one(self):
        """Facts of table 9: 25 sub-policies of two steps; how often each operation stands in it; some rows."""
        steps = [step for sub_policy in AUTO_AUGMENT_POLICY for step in sub_policy]
        assert len(AUTO_AUGMENT_POLICY) == 25
        assert len(steps) == 50
        assert Counter(name for name, _, _ in steps) == {
            **{"Equalize": 17, "Solarize": 7, "Color": 6, "Rotate": 6, "Posterize": 5},
            **{"Invert": 3, "AutoContrast": 2, "Contrast": 2, "Sharpness": 1, "ShearX": 1},
        }
        assert AUTO_AUGMENT_POLICY[0] == (("Posterize", 0.4, 8), ("Rotate", 0.6, 9))
        assert AUTO_AUGMENT_POLICY[17] == (("Sharpness", 0.4, 7), ("Invert", 0.6, 8))
        assert round(sum(p for _, p, _ in steps), 6) == 31.0
        assert sum(level for _, _, level in steps) == 287

    def test_sub_policies_come_equally_often_and_steps_as_likely_as_they_say(self, recorded):
        num, transform, rng = 20000, AutoAugment(fill=FILL), generator()
        for _ in range(num):
            transform(Image.new("RGB", (2, 2)), rng)
        expected = Counter()
        for sub_policy in AUTO_AUGMENT_POLICY:
            for name, probability, level in sub_policy:
                expected[name, level] += probability / 25
        counts = Counter((name, level) for name, level, _ in recorded)
        assert counts.keys() <= expected.keys()
        for step, mean in expected.items():
            assert abs(counts[step] - num * mean) < 5 * np.sqrt(num * mean) + 1e-9, step

    def test_an_image_goes_through_the_operations(self):
        image = to_image(picture())
        outputs = {AutoAugment(fill=FILL)(image, generator(seed)).tobytes() for seed in range(40)}
        assert len(outputs) > 15


@pytest.fixture
def applied(monkeypatch):
    """Calls (name, *values) of what augmentations are made of, which change nothing."""
    calls = []
    monkeypatch.setattr(augment, "apply", lambda name, image, *values: calls.append((name, *values)) or image)
    return calls


class TestColorJitter:
    def jittered(self, applied, strength, num):
        """(kind, factor) of each of the three steps of every call."""
        transform, rng = ColorJitter(strength), generator()
        for _ in range(num):
            transform(None, rng)
        return [applied[i : i + 3] for i in range(0, 3 * num, 3)]

    def test_orders_come_equally_often_and_factors_are_uniform(self, applied):
        calls = self.jittered(applied, 0.4, 3000)
        orders = Counter(tuple(kind for kind, _ in call) for call in calls)
        assert len(orders) == 6
        assert all(near(count, 3000, 1 / 6) for count in orders.values())
        for kind in ("brightness", "contrast", "color"):
            factors = np.sort([factor for call in calls for name, factor in call if name == kind])
            assert np.abs((factors - 0.6) / 0.8 - (np.arange(3000) + 0.5) / 3000).max() < 1.95 / np.sqrt(3000)

    def test_factors_are_not_negative(self, applied):
        factors = [factor for call in self.jittered(applied, 1.5, 500) for _, factor in call]
        assert 0.0 <= min(factors) < 0.05
        assert 2.4 < max(factors) <= 2.5

    def test_pixels(self):
        """The same draws, the references in the same order."""
        kinds = (brightness, contrast, color)
        for channels in (3, 1):
            for seed in range(6):
                pixels, rng = picture(channels=channels), generator(seed)
                result = to_pixels(ColorJitter(0.4)(to_image(pixels), generator(seed)))
                for index in rng.permutation(3):
                    pixels = kinds[index](pixels, rng.uniform(0.6, 1.4))
                np.testing.assert_array_equal(result, pixels)


class TestThreeAugment:
    def test_each_of_the_three_comes_equally_often_and_jitter_follows(self, applied):
        kinds = ("grey", "lookup", "blur", "brightness", "contrast", "color")
        transform, rng, calls = ThreeAugment(jitter=0.3), generator(), applied
        for _ in range(3000):
            transform(None, rng)
        counts = Counter(kind for kind, *_ in calls)
        assert all(near(counts[kind], 3000, 1 / 3) for kind in kinds[:3])
        assert all(counts[kind] == 3000 for kind in kinds[3:])
        radii = np.sort([values[0] for kind, *values in calls if kind == "blur"])
        uniform = (np.arange(len(radii)) + 0.5) / len(radii)
        assert np.abs((radii - 0.1) / 1.9 - uniform).max() < 1.95 / np.sqrt(len(radii))
        (table,) = {values[0].tobytes() for kind, *values in calls if kind == "lookup"}
        assert list(table) == [*range(128), *range(127, -1, -1)]

    def test_pixels(self):
        pixels = picture()
        grey = np.repeat(np.asarray(to_image(pixels).convert("L"))[:, :, None], 3, axis=2)
        solarized = np.where(pixels < 128, pixels, 255 - pixels)
        results = [to_pixels(ThreeAugment(jitter=0)(to_image(pixels), generator(seed))) for seed in range(30)]
        for expected in (grey, solarized):
            assert 3 < sum((result == expected).all() for result in results) < 20

    def test_build(self):
        opts = ["TRAIN.THREE_AUGMENT", True, "TRAIN.COLOR_JITTER"]
        built = build_augmentation(get_config(None, [*opts, 0.3]))
        assert type(built) is ThreeAugment and built.jitter == 0.3
        assert build_augmentation(get_config(None, [*opts, 0])).jitter == 0


def test_the_fill_is_the_mean_color():
    imagenet = [0.485, 0.456, 0.406]
    assert mean_color(imagenet, 3) == (124, 116, 104)
    assert mean_color([0.5, 0.5, 0.5], 3) == (128, 128, 128)
    assert mean_color(imagenet, 1) == 114
    assert mean_color([0.1307], 1) == 33


def test_build_passes_the_keys_on():
    config = get_config(
        None,
        ["TRAIN.RAND_AUGMENT_LAYERS", 3, "TRAIN.RAND_AUGMENT_MAGNITUDE", 5, "TRAIN.RAND_AUGMENT_STD", 0.25],
    )
    built = build_augmentation(config)
    assert (built.layers, built.magnitude, built.std, built.fill) == (3, 5, 0.25, FILL)
    assert built.resample == BICUBIC
    assert build_augmentation(get_config(None, ["DATA.INTERPOLATION", "bilinear"])).resample == BILINEAR
    jitter = build_augmentation(get_config(None, ["TRAIN.RAND_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.3]))
    assert jitter == ColorJitter(0.3)
    assert augment.MAX_LEVEL == 10.0
