"""Crops and flips against plain Pillow and NumPy, and against their published distributions."""

from __future__ import annotations

import hashlib
import random
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from paddlevit.config import get_config
from paddlevit.data import transforms
from paddlevit.data.augment import AutoAugment, ColorJitter, RandAugment
from paddlevit.data.transforms import (
    EvalTransform,
    PaddedCrop,
    RandomResizedCrop,
    TrainTransform,
    build_eval_transform,
    build_train_transform,
)
from paddlevit.errors import UserError

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def picture(width, height, *, mode="RGB", seed=0):
    """Smooth shapes with noise on top, so that every resampling difference shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    channels = 3 if mode == "RGB" else 1
    waves = [128 + 90 * np.sin(x / (5 + 2 * c) + c) * np.cos(y / (7 + c)) for c in range(channels)]
    pixels = np.stack(waves, axis=-1) + rng.normal(0, 20, (height, width, channels))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0])


def plain_center_crop(image, size, crop_pct, resample):
    """The classical chain, written down once more: shorter side, long side truncated, centre."""
    short = int(size / crop_pct)
    width, height = image.size
    if width <= height:
        new = (short, int(short * height / width))
    else:
        new = (int(short * width / height), short)
    resized = image.resize(new, resample)
    top, left = int(round((new[1] - size) / 2.0)), int(round((new[0] - size) / 2.0))
    return np.asarray(resized)[top : top + size, left : left + size]


def generator(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def config(*opts):
    return get_config(None, list(opts))


class TestEvaluation:
    @settings(max_examples=120)
    @given(
        width=st.integers(1, 90) | st.integers(90, 600),
        height=st.integers(1, 90) | st.integers(90, 600),
        size=st.integers(1, 40) | st.just(224),
        crop_pct=st.sampled_from([0.875, 0.9, 1.0, 0.5]),
        mode=st.sampled_from(["RGB", "L"]),
        resample=st.sampled_from([BICUBIC, BILINEAR]),
    )
    def test_center_crop_equals_the_plain_chain(self, width, height, size, crop_pct, mode, resample):
        # Very long images are resized in part, which moves values by a few levels.
        assume(int(size / crop_pct) ** 2 * max(width, height) / min(width, height) <= transforms._MAX_RESIZED_PIXELS)
        image = picture(width, height, mode=mode)
        pixels = EvalTransform(size, crop_pct=crop_pct, resample=resample)(image)
        expected = plain_center_crop(image, size, crop_pct, resample)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (size, size, 3 if mode == "RGB" else 1)
        np.testing.assert_array_equal(pixels.reshape(expected.shape), expected)

    def test_pixels_are_those_of_pillow_9_to_12(self):
        """Digests computed with Pillow 9.5, 10.4 and 12.3, which agree."""
        y, x = np.mgrid[:375, :500]
        image = Image.fromarray(np.stack([x * y % 251, (x * 7 + y * y) % 256, (x ^ y) % 256], -1).astype(np.uint8))
        digests = {
            name: hashlib.sha256(build_eval_transform(config(*opts))(image, None).tobytes()).hexdigest()[:16]
            for name, opts in {
                "crop": [],
                "pit": ["DATA.CROP_PCT", 0.9],
                "squash": ["DATA.RESIZE_MODE", "squash", "DATA.IMAGE_SIZE", 384],
            }.items()
        }
        assert digests == {"crop": "fae93c95228227cc", "pit": "1a9797c9c3e9bbae", "squash": "2f68968b9924a172"}

    @pytest.mark.parametrize(("size", "short"), [(224, 256), (384, 438), (32, 36), (288, 329), (448, 512)])
    def test_the_official_size_rule_is_the_same(self, size, short):
        assert int(256 / 224 * size) == short
        left, _, right, _ = EvalTransform(size, crop_pct=0.875, resample=BICUBIC).source_box((short, short))
        assert right - left == size

    @pytest.mark.parametrize(("width", "left"), [(32, 0), (33, 0), (35, 2), (37, 2), (39, 4), (42, 5)])
    def test_offsets_are_rounded_half_to_even(self, width, left):
        ramp = Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (32, 1)))
        crop = EvalTransform(32, crop_pct=1.0, resample=BICUBIC)
        np.testing.assert_array_equal(crop(ramp)[0, :, 0], np.arange(left, left + 32))
        np.testing.assert_array_equal(
            crop(ramp.transpose(Image.Transpose.ROTATE_270))[:, 0, 0][[0, -1]], [left, left + 31]
        )

    def test_an_image_of_the_right_size_is_left_alone(self):
        image = picture(32, 32)
        for opts in ([], ["DATA.RESIZE_MODE", "squash"]):
            transform = build_eval_transform(config("DATA.IMAGE_SIZE", 32, "DATA.CROP_PCT", 1.0, *opts))
            np.testing.assert_array_equal(transform(image, None), np.asarray(image))

    @settings(max_examples=20)
    @given(width=st.integers(1, 90), height=st.integers(1, 90), mode=st.sampled_from(["RGB", "L"]))
    def test_squash(self, width, height, mode):
        image = picture(width, height, mode=mode)
        pixels = build_eval_transform(config("DATA.RESIZE_MODE", "squash", "DATA.IMAGE_SIZE", 24))(image, None)
        np.testing.assert_array_equal(pixels.squeeze(), np.asarray(image.resize((24, 24), BICUBIC)))

    @pytest.mark.parametrize("side", [(20, 900), (900, 20), (20, 901)])
    def test_long_images_are_resized_only_where_they_are_kept(self, side, monkeypatch):
        image = picture(*side)
        crop = EvalTransform(64, crop_pct=0.875, resample=BICUBIC)
        whole = crop(image).astype(int)
        monkeypatch.setattr(transforms, "_MAX_RESIZED_PIXELS", 100)
        assert np.abs(crop(image).astype(int) - whole).max() <= 6

    def test_a_needle_does_not_fill_the_memory(self):
        needle = Image.new("RGB", (1, 2_000_000), (9, 8, 7))
        pixels = build_eval_transform(config())(needle, None)
        assert pixels.shape == (224, 224, 3)
        assert (pixels == (9, 8, 7)).all()

    def test_pixels_can_be_written_to(self):
        assert build_eval_transform(config())(picture(300, 200), None).flags.writeable


class TestRandomResizedCrop:
    def boxes(self, size, num, *, scale, ratio, seed=0):
        crop = RandomResizedCrop(8, scale=scale, ratio=ratio, resample=BICUBIC)
        rng = generator(seed)
        return np.array([crop.box(*size, rng) for _ in range(num)])

    def test_area_ratio_and_place_are_as_published(self):
        """Bounds that always fit, so nothing is drawn twice: area uniform, ratio log-uniform, place uniform."""
        side, num = 2000, 4000
        left, top, right, bottom = self.boxes((side, side), num, scale=(0.1, 0.5), ratio=(0.6, 1.5)).T
        w, h = right - left, bottom - top
        uniform = {
            "area": (w * h / side**2 - 0.1) / 0.4,
            "ratio": np.log(w / h / 0.6) / np.log(1.5 / 0.6),
            "left": left / (side - w),
            "top": top / (side - h),
        }
        for name, values in uniform.items():
            # Kolmogorov-Smirnov: 1.95 / sqrt(num) is passed by chance once in a thousand times.
            distance = np.abs(np.sort(values) - (np.arange(num) + 0.5) / num).max()
            assert distance < 1.95 / np.sqrt(num), name
        assert np.abs(np.corrcoef(list(uniform.values())) - np.eye(4)).max() < 0.06

    @settings(max_examples=80)
    @given(width=st.integers(1, 600), height=st.integers(1, 600), seed=st.integers(0, 2**32 - 1))
    def test_boxes_lie_within_the_image(self, width, height, seed):
        for left, top, right, bottom in self.boxes(
            (width, height), 3, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), seed=seed
        ):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height

    @pytest.mark.parametrize(
        ("size", "scale", "box"),
        [
            ((10, 1000), (0.9, 1.0), (0, 493, 10, 506)),  # 10 / 0.75 = 13.3
            ((1000, 10), (0.9, 1.0), (493, 0, 506, 10)),  # 10 * 4/3 = 13.3
            ((30, 30), (4.0, 5.0), (0, 0, 30, 30)),
            ((33, 30), (4.0, 5.0), (0, 0, 33, 30)),
            ((1, 500), (0.9, 1.0), (0, 249, 1, 250)),
            ((500, 1), (0.9, 1.0), (249, 0, 250, 1)),
        ],
    )
    def test_after_ten_tries_the_largest_central_part(self, size, scale, box):
        assert (self.boxes(size, 3, scale=scale, ratio=(3 / 4, 4 / 3)) == box).all()

    def test_the_fallback_is_never_empty(self):
        assert (self.boxes((1, 500), 2, scale=(0.9, 1.0), ratio=(4.0, 5.0)) == (0, 249, 1, 250)).all()

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    @pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
    def test_pixels_are_cropped_first_and_resized_then(self, mode, resample):
        image = picture(120, 90, mode=mode)
        crop = RandomResizedCrop(32, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), resample=resample)
        for seed in range(10):
            left, top, right, bottom = crop.box(120, 90, generator(seed))
            expected = Image.fromarray(np.asarray(image)[top:bottom, left:right]).resize((32, 32), resample)
            np.testing.assert_array_equal(np.asarray(crop(image, generator(seed))), np.asarray(expected))


class TestPaddedCrop:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_every_shift_comes_equally_often_and_zeros_come_in(self, mode):
        image = picture(12, 12, mode=mode)
        crop = PaddedCrop(12, padding=2, resample=BICUBIC)
        around = ((2, 2), (2, 2), (0, 0)) if mode == "RGB" else 2
        padded = np.pad(np.asarray(image), around)
        shifts = {padded[y : y + 12, x : x + 12].tobytes(): (x, y) for x in range(5) for y in range(5)}
        rng, num = generator(), 5000
        seen = [shifts[np.asarray(crop(image, rng)).tobytes()] for _ in range(num)]
        counts = np.array([seen.count(shift) for shift in shifts.values()])
        assert np.abs(counts - num / 25).max() < 5 * np.sqrt(num / 25)

    def test_another_size_is_resized_first(self):
        image = picture(40, 31)
        crop = PaddedCrop(16, padding=0, resample=BICUBIC)
        np.testing.assert_array_equal(np.asarray(crop(image, generator())), np.asarray(image.resize((16, 16), BICUBIC)))


class TestTrainTransform:
    def test_a_flip_is_a_mirror(self):
        image = picture(50, 40)
        for crop in ("random_resized", "padded"):
            opts = ["TRAIN.CROP", crop, "TRAIN.RAND_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0, "DATA.IMAGE_SIZE", 32]
            never = build_train_transform(config(*opts, "TRAIN.HFLIP", 0.0))
            always = build_train_transform(config(*opts, "TRAIN.HFLIP", 1.0))
            np.testing.assert_array_equal(never(image, generator(3))[:, ::-1], always(image, generator(3)))

    def test_flips_come_as_often_as_asked(self):
        image = picture(8, 8)
        crop = PaddedCrop(8, padding=0, resample=BICUBIC)
        transform, rng = TrainTransform(crop, hflip=0.3, augmentation=None), generator()
        flipped = [not np.array_equal(transform(image, rng), np.asarray(image)) for _ in range(3000)]
        assert abs(np.mean(flipped) - 0.3) < 5 * np.sqrt(0.21 / 3000)

    @pytest.mark.parametrize(
        "opts", [[], ["TRAIN.AUTO_AUGMENT", True], ["TRAIN.RAND_AUGMENT", False], ["TRAIN.CROP", "padded"]]
    )
    def test_only_the_generator_decides(self, opts):
        transform, image = build_train_transform(config("DATA.IMAGE_SIZE", 32, *opts)), picture(60, 50)
        first = [transform(image, generator(seed)) for seed in range(12)]
        np.random.seed(5)
        random.seed(5)
        again = [transform(image, generator(seed)) for seed in range(12)]
        np.testing.assert_array_equal(first, again)
        assert len({pixels.tobytes() for pixels in first}) == 12

    @settings(max_examples=60)
    @given(
        width=st.integers(1, 60),
        height=st.integers(1, 60),
        channels=st.sampled_from([1, 3]),
        auto=st.booleans(),
        crop=st.sampled_from(["random_resized", "padded"]),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_size_gives_pixels_of_the_asked_size(self, width, height, channels, auto, crop, seed):
        opts = ["DATA.IMAGE_CHANNELS", channels, "TRAIN.AUTO_AUGMENT", auto, "TRAIN.CROP", crop, "DATA.IMAGE_SIZE", 20]
        image = picture(width, height, mode="RGB" if channels == 3 else "L")
        pixels = build_train_transform(config(*opts))(image, generator(seed))
        assert pixels.shape == (20, 20, channels)
        assert pixels.dtype == np.uint8

    def test_the_augmentation_comes_after_crop_and_flip(self):
        opts = ["DATA.IMAGE_SIZE", 32, "TRAIN.HFLIP", 1.0, "TRAIN.CROP_SCALE", "[0.5, 0.5]"]
        transform, image = build_train_transform(config(*opts)), picture(60, 50)
        for seed in range(8):
            rng = generator(seed)
            cropped = transform.crop(image, rng).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            rng.random()
            expected = transform.augmentation(cropped, rng)
            np.testing.assert_array_equal(transform(image, generator(seed)), np.asarray(expected))


class TestBuild:
    def test_what_the_keys_ask_for(self):
        opts = ["TRAIN.CROP_SCALE", "[0.2, 0.7]", "TRAIN.CROP_RATIO", "[1, 2]", "DATA.INTERPOLATION", "bilinear"]
        transform = build_train_transform(config("DATA.IMAGE_SIZE", 96, "TRAIN.HFLIP", 0.25, *opts))
        crop = transform.crop
        assert (crop.size, crop.scale, crop.ratio, crop.resample) == (96, [0.2, 0.7], [1, 2], BILINEAR)
        assert transform.hflip == 0.25
        padded = build_train_transform(config("TRAIN.CROP", "padded", "TRAIN.CROP_PADDING", 7)).crop
        assert (padded.size, padded.padding, padded.resample) == (224, 7, BICUBIC)
        assert build_eval_transform(config("DATA.INTERPOLATION", "bilinear")).resample == BILINEAR

    def test_auto_augment_goes_before_rand_augment_before_jitter(self):
        auto, rand = "TRAIN.AUTO_AUGMENT", "TRAIN.RAND_AUGMENT"
        for opts, kind in (
            ([auto, True, rand, True], AutoAugment),
            ([auto, False, rand, True], RandAugment),
            ([auto, False, rand, False], ColorJitter),
            ([auto, False, rand, False, "TRAIN.COLOR_JITTER", 0.0], type(None)),
        ):
            assert type(build_train_transform(config(*opts)).augmentation) is kind

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("DATA.CROP_PCT", 0.0),
            ("DATA.CROP_PCT", 1.01),
            ("DATA.CROP_PCT", -0.5),
        ],
    )
    def test_a_wrong_crop_percentage_is_named(self, key, value):
        with pytest.raises(UserError, match=f"{key} must .*, got {value}"):
            build_eval_transform(config(key, value))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("TRAIN.CROP_SCALE", [1.0, 0.08]),
            ("TRAIN.CROP_SCALE", [0.0, 1.0]),
            ("TRAIN.CROP_SCALE", [0.5]),
            ("TRAIN.CROP_SCALE", []),
            ("TRAIN.CROP_RATIO", [-1.0, 1.0]),
            ("TRAIN.CROP_RATIO", [0.5, 1.0, 2.0]),
            ("TRAIN.CROP_PADDING", -1),
            ("TRAIN.HFLIP", 1.5),
            ("TRAIN.HFLIP", -0.1),
            ("TRAIN.COLOR_JITTER", -0.4),
            ("TRAIN.RAND_AUGMENT_LAYERS", 0),
            ("TRAIN.RAND_AUGMENT_MAGNITUDE", 11),
            ("TRAIN.RAND_AUGMENT_MAGNITUDE", -1),
            ("TRAIN.RAND_AUGMENT_STD", -0.5),
        ],
    )
    def test_a_wrong_training_key_is_named(self, key, value):
        with pytest.raises(UserError) as raised:
            build_train_transform(config(key, value))
        assert re.search(f"{key} must .*, got {re.escape(str(value))}", str(raised.value))
