"""The training chain by OpenCV against Pillow's: the same decoding, nearly the same resizing and operations."""

from __future__ import annotations

import contextlib
import io
import sys
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paddlevit.config import get_config
from paddlevit.data import build as room
from paddlevit.data import build_train_loader, jpeg, opencv_ops, pillow_ops
from paddlevit.data.augment import Draw, operations
from paddlevit.data.cifar import CifarSource
from paddlevit.data.decode import decode
from paddlevit.data.jpeg import decode_part, read_frame, reduction
from paddlevit.data.opencv_transforms import OpenCVTrainTransform
from paddlevit.data.parts import read_part
from paddlevit.data.sources import Source
from paddlevit.data.transforms import PaddedCrop, RandomResizedCrop, TrainTransform
from paddlevit.errors import UserError

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
FILL = (124, 116, 104)


def photograph(width, height, seed=0):
    """Pixels [H, W, 3] with the smooth and rough places, and the edges, of a photograph."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(0, 1, (max(2, height >> k), max(2, width >> k), 3)) * 2**k for k in range(6)]
    total = sum(np.stack([_scaled(layer[..., c], width, height) for c in range(3)], axis=-1) for layer in layers)
    total += 40 * (np.add.outer(np.arange(height), np.arange(width)) % 90 > 45)[..., None]
    return (120 + total).clip(0, 255).astype(np.uint8)


def _scaled(plane, width, height):
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), BICUBIC))


def encoded(pixels, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


class Memory(Source):
    """Image files in memory."""

    class_names = ("a",)

    def __init__(self, *files):
        self.files = files

    @property
    def labels(self):
        return np.zeros(len(self.files), dtype=np.int32)

    def read(self, i):
        return self.files[i]

    def name(self, i):
        return f"image {i}"


SAMPLINGS = [getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}", None) for name in (411, 420, 422, 440, 444)]


@contextlib.contextmanager
def decoder(name):
    """Parts of JPEG files by simplejpeg, or by OpenCV as where that is not installed."""
    with mock.patch.object(jpeg, "simplejpeg", jpeg.simplejpeg if name == "simplejpeg" else None):
        yield


@pytest.fixture(params=["simplejpeg", "opencv"])
def each_decoder(request):
    with decoder(request.param):
        yield request.param


class TestDecoding:
    @settings(max_examples=150, deadline=None)
    @given(data=st.data(), name=st.sampled_from(["simplejpeg", "opencv"]))
    def test_parts_are_those_of_pillows_image(self, data, name):
        width, height = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
        pixels = photograph(width, height, data.draw(st.integers(0, 9)))
        if data.draw(st.booleans()):
            pixels = pixels[..., 0]
        options = [cv2.IMWRITE_JPEG_QUALITY, data.draw(st.sampled_from([30, 75, 97, 100]))]
        options += [cv2.IMWRITE_JPEG_PROGRESSIVE, data.draw(st.sampled_from([0, 1]))]
        options += [cv2.IMWRITE_JPEG_RST_INTERVAL, data.draw(st.sampled_from([0, 3]))]
        if pixels.ndim == 3 and SAMPLINGS[0] is not None:
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, data.draw(st.sampled_from(SAMPLINGS))]
        file = cv2.imencode(".jpg", pixels, options)[1].tobytes()
        frame = read_frame(file)
        assert frame[:3] == (width, height, 3 if pixels.ndim == 3 else 1)
        expected = np.asarray(decode(file, "x"))
        left, right = sorted(data.draw(st.tuples(st.integers(0, width - 1), st.integers(0, width - 1))))
        top, bottom = sorted(data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, height - 1))))
        box = (left, top, right + 1, bottom + 1)
        with decoder(name):
            part = decode_part(file, frame, box)
            assert (part == expected[top : bottom + 1, left : right + 1]).all()
            assert (read_part(Memory(file), 0, lambda w, h: (0, 0, w, h), side=224) == expected).all()

    def test_the_turn_that_a_camera_notes_is_ignored(self, each_decoder):
        exif = Image.Exif()
        exif[0x0112] = 6
        file = encoded(photograph(40, 24), exif=exif)
        assert read_frame(file)[:2] == (40, 24)
        assert (decode_part(file, read_frame(file), (0, 0, 40, 24)) == np.asarray(decode(file, "x"))).all()

    def test_fast_decoding_is_a_little_coarser(self):
        for subsampling in (0, 2):
            file = encoded(photograph(400, 300), quality=92, subsampling=subsampling)
            box = (30, 50, 390, 240)
            fast = decode_part(file, read_frame(file), box, fast=True).astype(int)
            exact = decode_part(file, read_frame(file), box)
            assert 0.0 < np.abs(fast - exact).mean() < 2.5

    def test_what_lies_below_a_part_is_not_looked_at(self, each_decoder):
        """Its last quarter may be damaged; OpenCV reads all of it."""
        file = bytearray(encoded(photograph(200, 160), quality=90))
        frame, box = read_frame(bytes(file)), (10, 10, 190, 60)
        expected = decode_part(bytes(file), frame, box)
        file[-len(file) // 4 : -2] = bytes(len(file) // 4 - 2)
        assert (decode_part(bytes(file), frame, box) == expected).all()

    @pytest.mark.parametrize("kind", ["PNG", "JPEG cut", "JPEG with trailing bytes", "CMYK", "empty", "twelve bits"])
    def test_what_is_unusual_is_left_to_pillow(self, kind):
        good = encoded(photograph(40, 24))
        start = good.index(b"\xff\xc0")
        file = {
            "PNG": encoded(photograph(40, 24), "PNG"),
            "JPEG cut": good[:-2],
            "JPEG with trailing bytes": good + b"x",
            "CMYK": encoded(np.asarray(Image.fromarray(photograph(40, 24)).convert("CMYK"))[..., :3]),
            "empty": b"",
            "twelve bits": good[: start + 4] + b"\x0c" + good[start + 5 :],
        }[kind]
        if kind == "CMYK":
            buffer = io.BytesIO()
            Image.fromarray(photograph(40, 24)).convert("CMYK").save(buffer, "JPEG")
            assert read_frame(buffer.getvalue()).components == 4
            part = read_part(Memory(buffer.getvalue()), 0, lambda w, h: (3, 4, 30, 20), side=8)
            assert (part == np.asarray(decode(buffer.getvalue(), "x"))[4:20, 3:30]).all()
        else:
            assert read_frame(file) is None

    def test_reduction(self):
        assert [reduction(side, side + 5, side=224) for side in (1, 447, 448, 895, 896, 1792, 9000)] == [
            *(1, 1, 2, 2, 4, 8, 8)
        ]
        assert reduction(9000, 300, side=224) == 1

    @pytest.mark.parametrize("reduced", [1, 2, 4, 8])
    def test_reduced_parts_are_the_averages_of_the_pixels(self, reduced, each_decoder):
        pixels = photograph(203 * reduced + 1, 150 * reduced)
        file = encoded(pixels, quality=98, subsampling=0)
        box = tuple(edge * reduced for edge in (10, 20, 110, 130))
        part = decode_part(file, read_frame(file), box, reduced=reduced)
        assert (read_part(Memory(file), 0, lambda w, h: box, side=100) == part).all()
        assert part.shape == (110, 100, 3)
        left, top, right, bottom = box
        averages = pixels[top:bottom, left:right].reshape(110, reduced, 100, reduced, 3).mean((1, 3))
        assert np.abs(part - averages).mean() < 3.0

    @pytest.mark.filterwarnings("ignore:Image size")
    def test_too_many_pixels_are_named(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 24 - 1)
        with pytest.raises(UserError, match="image 0 has 40 x 24 pixels"):
            read_part(Memory(encoded(photograph(40, 24))), 0, lambda w, h: (0, 0, w, h), side=8)


class TestOperations:
    @pytest.mark.parametrize("increasing", [True, False])
    @pytest.mark.parametrize("name", operations(pillow_ops, increasing=True))
    def test_against_pillow(self, name, increasing):
        for pixels, fill in ((photograph(64, 50), FILL), (photograph(64, 50)[..., 0].copy(), 115)):
            for level in (0.0, 3.0, 8.64, 10.0):
                for sign in (1.0, -1.0):
                    draw = Draw(sign, BICUBIC, fill)
                    ours = operations(opencv_ops, increasing=increasing)[name](pixels, level, draw)
                    theirs = operations(pillow_ops, increasing=increasing)[name](Image.fromarray(pixels), level, draw)
                    self.compare(name, ours, np.asarray(theirs), level)

    def compare(self, name, ours, theirs, level):
        assert ours.shape == theirs.shape and ours.dtype == np.uint8
        difference = np.abs(ours.astype(int) - theirs)
        if name == "Rotate":
            assert difference[2:-2, 2:-2].mean() < 3.0, level
        elif name in ("ShearX", "ShearY"):
            assert difference.max() <= 1 and difference.mean() < 0.2, level
        elif name in ("TranslateX", "TranslateY"):
            assert np.median(difference) <= 1 and (difference > 1).mean() < 0.03, level
        else:
            assert difference.max() <= (1 if name in ("Color", "Contrast", "Sharpness") else 0), level

    def test_bilinear_shears(self):
        pixels = photograph(64, 50)
        for matrix in ((1, 0.3, -4.0, 0, 1, 0), (1, 0, 0, -0.2, 1, 2.5)):
            ours = opencv_ops.affine(pixels, matrix, BILINEAR, FILL)
            theirs = pillow_ops.affine(Image.fromarray(pixels), matrix, BILINEAR, FILL)
            assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1

    def test_shears_further_than_the_image_is_wide(self):
        """Windows begin several rows away from their own."""
        pixels = photograph(20, 60)
        for slope in (1.5, -1.5):
            ours = opencv_ops.affine(pixels, (1, slope, 0, 0, 1, 0), BICUBIC, FILL)
            theirs = pillow_ops.affine(Image.fromarray(pixels), (1, slope, 0, 0, 1, 0), BICUBIC, FILL)
            assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1

    def test_flat_images(self):
        for value in (0, 77, 255):
            pixels = np.full((20, 20, 3), value, dtype=np.uint8)
            for ops, image in ((opencv_ops, pixels), (pillow_ops, Image.fromarray(pixels))):
                for op in (ops.autocontrast, ops.equalize):
                    assert (np.asarray(op(image)) == pixels).all()

    def test_everything_moved_out(self):
        for offset in (-50.5, 50.0):
            assert (opencv_ops.affine(photograph(20, 20), (1, 0, offset, 0, 1, 0), BICUBIC, FILL) == FILL).all()

    def test_grey_mirror_and_blur(self):
        pixels = photograph(60, 50)
        image = Image.fromarray(pixels)
        assert np.abs(opencv_ops.grey(pixels).astype(int) - np.asarray(pillow_ops.grey(image))).max() <= 1
        assert (opencv_ops.mirror(pixels) == np.asarray(pillow_ops.mirror(image))).all()
        for radius in (0.1, 0.7, 2.0):
            difference = opencv_ops.blur(pixels, radius).astype(int) - np.asarray(pillow_ops.blur(image, radius))
            assert np.abs(difference).mean() < 1.5


class TestResize:
    @pytest.mark.parametrize("shrink", [0.5, 0.9, 1.0, 1.1, 1.3, 1.7, 2.2, 2.6, 4.0])
    def test_is_close_to_pillows_bicubic(self, shrink):
        side = round(96 * shrink)
        pixels = photograph(side, side)
        ours = opencv_ops.resize(pixels, (96, 96), BICUBIC).astype(int)
        theirs = np.asarray(Image.fromarray(pixels).resize((96, 96), BICUBIC))
        assert np.abs(ours - theirs).mean() < (0 if shrink == 1.0 else 1.0) + 1e-9
        assert abs(ours.mean() - theirs.mean()) < 0.2

    def test_each_side_has_its_own_filter(self):
        pixels = photograph(200, 100)
        ours = opencv_ops.resize(pixels, (100, 100), BICUBIC).astype(int)
        assert np.abs(ours - np.asarray(Image.fromarray(pixels).resize((100, 100), BICUBIC))).mean() < 3.0

    def test_fine_stripes_vanish(self):
        """Without a filter before, stripes of 1 pixel would turn into wide ones."""
        pixels = np.zeros((210, 210, 3), dtype=np.uint8)
        pixels[::2] = 255
        assert opencv_ops.resize(pixels, (100, 100), BICUBIC)[5:-5].std() < 30


class TestTransform:
    crop = RandomResizedCrop(32, scale=(0.2, 1.0), ratio=(0.75, 4 / 3), resample=BICUBIC)

    def both(self, crop, seed, channels=3, pixels=None):
        """Our pixels and Pillow's for the same draws."""
        source = Memory(encoded(photograph(100, 80, seed) if pixels is None else pixels, quality=95))
        rng = [np.random.default_rng(seed) for _ in range(2)]
        image = source.image(0) if channels == 3 else source.image(0).convert("L")
        ours = OpenCVTrainTransform(crop, hflip=0.5, augmentation=None, channels=channels)(source, 0, rng[0])
        return ours.astype(int), TrainTransform(crop, hflip=0.5, augmentation=None)(image, rng[1]).astype(int)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_draws_what_pillows_does(self, channels):
        for seed in range(12):
            ours, theirs = self.both(self.crop, seed, channels)
            assert ours.shape == theirs.shape == (32, 32, channels)
            # Crops of 64 pixels and more are decoded at half their size; other parts are 14 to 46 levels away.
            assert np.abs(ours - theirs).mean() < 6.0

    def test_padded(self):
        crop = PaddedCrop(32, padding=5, resample=BICUBIC)
        for seed in range(8):
            ours, theirs = self.both(crop, seed, pixels=photograph(32, 32, seed))
            np.testing.assert_array_equal(ours, theirs)

    def test_images_that_are_no_files(self):
        pixels = photograph(32, 32)
        source = CifarSource(pixels[None], np.zeros(1, np.int32), ["a"], files=[("x", 1)])
        assert (read_part(source, 0, lambda w, h: (3, 4, 20, 30), side=8) == pixels[4:30, 3:20]).all()


class TestChoice:
    def test_without_opencv_pillow_does_it(self, monkeypatch):
        assert room.resizer("auto") == room.resizer("opencv") == "opencv"
        monkeypatch.setitem(sys.modules, "cv2", None)
        assert room.resizer("auto") == room.resizer("pillow") == "pillow"
        with pytest.raises(UserError, match="TRAIN.RESIZER is opencv, but: .*cv2.*pip install opencv-python-headless"):
            room.resizer("opencv")

    def test_both_train_on_the_same_pixels_where_nothing_is_resized(self, tmp_path):
        for split in ("train", "val"):
            (tmp_path / split).mkdir()
            for i in range(8):
                (tmp_path / split / f"{i}.png").write_bytes(encoded(photograph(32, 32, i), "PNG"))
            (tmp_path / f"{split}_list.txt").write_text("".join(f"{split}/{i}.png {i}\n" for i in range(8)))
        opts = ["DATA.DATA_PATH", str(tmp_path), "DATA.BATCH_SIZE", 4, "DATA.NUM_WORKERS", 0, "TRAIN.CROP", "padded"]
        opts += ["TRAIN.RAND_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0, "TRAIN.HFLIP", 0.5]
        batches = []
        for name in ("opencv", "pillow"):
            loader = build_train_loader(get_config("pit_digits", [*opts, "TRAIN.RESIZER", name]))
            batches.append([(images.numpy(), labels.numpy()) for images, labels in loader.epoch(3)])
        for one, other in zip(*batches):
            assert (one[0] == other[0]).all() and (one[1] == other[1]).all()
