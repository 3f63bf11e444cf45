"""The training chain by OpenCV: the same parts, draws and operations as by Pillow, and nearly the same values."""

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
from paddlevit.data import build_train_loader, opencv
from paddlevit.data.augment import PILLOW, Draw, operations, perform
from paddlevit.data.cifar import CifarSource
from paddlevit.data.decode import Decoding, decode
from paddlevit.data.opencv import OPS, OpenCVDataset, read_part, resize
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
def decoded_in_parts(expected):
    """Pillow is not asked where a part is `expected`, and is where not."""
    with mock.patch.object(opencv, "decode", side_effect=decode) as pillow:
        yield
    assert pillow.called != expected


def part_of(file, box, **options):
    return read_part(Memory(file), 0, lambda width, height: box, **{"side": 224, "fast": False, **options})


class TestDecoding:
    @settings(max_examples=150)
    @given(data=st.data())
    def test_parts_are_those_of_pillows_image(self, data):
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
        left, right = sorted(data.draw(st.tuples(st.integers(0, width - 1), st.integers(0, width - 1))))
        top, bottom = sorted(data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, height - 1))))
        with decoded_in_parts(True):
            part = part_of(file, (left, top, right + 1, bottom + 1))
        assert (part == np.asarray(decode(file, "x"))[top : bottom + 1, left : right + 1]).all()

    def test_the_box_is_chosen_in_the_sides_of_the_image(self):
        asked = []
        read_part(Memory(encoded(photograph(40, 24))), 0, lambda *size: asked.append(size) or (0, 0, 9, 9), side=8)
        assert asked == [(40, 24)]

    def test_the_turn_that_a_camera_notes_is_ignored(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        file = encoded(photograph(40, 24), exif=exif)
        assert (part_of(file, (0, 0, 40, 24)) == np.asarray(decode(file, "x"))).all()

    def test_fast_decoding_is_a_little_coarser(self):
        for subsampling in (0, 2):
            file = encoded(photograph(400, 300), quality=92, subsampling=subsampling)
            box = (30, 50, 390, 240)
            difference = part_of(file, box, fast=True).astype(int) - part_of(file, box)
            assert 0.0 < np.abs(difference).mean() < 2.5

    def test_what_lies_below_a_part_is_not_looked_at(self):
        """Its last quarter may be damaged."""
        file = bytearray(encoded(photograph(200, 160), quality=90))
        expected = part_of(bytes(file), (10, 10, 190, 60))
        file[-len(file) // 4 : -2] = bytes(len(file) // 4 - 2)
        assert (part_of(bytes(file), (10, 10, 190, 60)) == expected).all()

    @pytest.mark.parametrize("kind", ["PNG", "JPEG with trailing bytes", "CMYK", "no simplejpeg"])
    def test_what_is_unusual_is_left_to_pillow(self, kind, monkeypatch):
        good, cmyk = encoded(photograph(40, 24)), io.BytesIO()
        Image.fromarray(photograph(40, 24)).convert("CMYK").save(cmyk, "JPEG")
        file = {
            "PNG": encoded(photograph(40, 24), "PNG"),
            "JPEG with trailing bytes": good + b"x",
            "CMYK": cmyk.getvalue(),
            "no simplejpeg": good,
        }[kind]
        if kind == "no simplejpeg":
            monkeypatch.setattr(opencv, "simplejpeg", None)
        with decoded_in_parts(False):
            part = part_of(file, (3, 4, 30, 20))
        assert (part == np.asarray(decode(file, "x"))[4:20, 3:30]).all()

    @pytest.mark.parametrize("kind", ["empty", "cut", "twelve bits"])
    def test_what_cannot_be_read_is_named(self, kind):
        good = encoded(photograph(40, 24))
        bits = good.index(b"\xff\xc0") + 4
        files = {"empty": b"", "cut": good[:-9], "twelve bits": good[:bits] + b"\x0c" + good[bits + 1 :]}
        with pytest.raises(UserError, match="image 0 is "):
            part_of(files[kind], (0, 0, 40, 24))

    @pytest.mark.parametrize(
        ("sides", "reduced"),
        [((1, 6), 1), ((447, 900), 1), ((448, 453), 2), ((900, 895), 2), ((896, 896), 4), ((300, 9000), 1)],
    )
    def test_how_much_smaller_a_part_is_decoded(self, sides, reduced):
        file = encoded(np.zeros((*sides[::-1], 3), np.uint8))
        assert part_of(file, (0, 0, *sides)).shape == (round(sides[1] / reduced), round(sides[0] / reduced), 3)

    @pytest.mark.parametrize("reduced", [1, 2, 4, 8])
    def test_reduced_parts_are_the_averages_of_the_pixels(self, reduced):
        pixels = photograph(203 * reduced + 1, 150 * reduced)
        left, top, right, bottom = box = tuple(edge * reduced for edge in (10, 20, 110, 130))
        part = part_of(encoded(pixels, quality=98, subsampling=0), box, side=100)
        assert part.shape == (110, 100, 3)
        averages = pixels[top:bottom, left:right].reshape(110, reduced, 100, reduced, 3).mean((1, 3))
        assert np.abs(part - averages).mean() < 3.0

    def test_too_many_pixels_are_named(self, monkeypatch):
        monkeypatch.setattr(Memory, "decoding", Decoding(max_pixels=40 * 24 - 1))
        with pytest.raises(UserError, match="image 0 has 40 x 24 pixels"):
            part_of(encoded(photograph(40, 24)), (0, 0, 40, 24))


class TestOperations:
    def test_both_tables_have_the_same(self):
        assert OPS.keys() == PILLOW.keys()

    @pytest.mark.parametrize("increasing", [True, False])
    @pytest.mark.parametrize("name", operations(increasing=True))
    def test_against_pillow(self, name, increasing):
        op = operations(increasing=increasing)[name]
        for pixels, fill in ((photograph(64, 50), FILL), (photograph(64, 50)[..., 0].copy(), 115)):
            for level in (0.0, 3.0, 8.64, 10.0):
                for draw in (Draw(1.0, BICUBIC, fill), Draw(-1.0, BILINEAR, fill)):
                    ours = perform(op, pixels, level, draw)
                    theirs = np.asarray(perform(op, Image.fromarray(pixels), level, draw))
                    assert ours.shape == theirs.shape and ours.dtype == np.uint8
                    difference = np.abs(ours.astype(int) - theirs)[2:-2, 2:-2]
                    self.compare(name, difference, level)

    def compare(self, name, difference, level):
        if name in ("Rotate", "ShearX", "ShearY"):
            assert difference.mean() < 3.0, level
        elif name in ("TranslateX", "TranslateY"):  # by up to half a pixel
            assert difference.mean() < 6.0, level
        elif name == "Equalize":  # Pillow counts in whole pixels per level, of which there are few here
            assert difference.mean() < 5.0, level
        else:
            assert difference.mean() < 1.0 and difference.max() <= 2, level

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
    @pytest.mark.parametrize("name", operations(increasing=True))
    def test_tiny_images(self, name, size):
        for shape, fill in ((size, 115), ((*size, 3), FILL)):
            image = perform(
                operations(increasing=True)[name], np.full(shape, 9, np.uint8), 9.0, Draw(-1.0, BICUBIC, fill)
            )
            assert image.shape == shape

    def test_flat_images(self):
        for value in (0, 77, 255):
            for shape in ((20, 20, 3), (20, 20)):
                pixels = np.full(shape, value, dtype=np.uint8)
                for name in ("autocontrast", "equalize"):
                    assert (OPS[name](pixels) == pixels).all()

    def test_what_comes_from_outside_has_the_fill_color(self):
        pixels = photograph(40, 40)
        right = OPS["translate"](pixels, -0.4, 0.0, BICUBIC, FILL)
        assert (right[:, :16] == FILL).all() and (right[:, 16:] == pixels[:, :-16]).all()
        for image in (OPS["rotate"](pixels, 30.0, BICUBIC, FILL), OPS["shear"](pixels, 0.3, 0.3, BICUBIC, FILL)):
            assert (image == FILL).all(axis=2).mean() > 0.05

    def test_grey_mirror_and_blur(self):
        pixels = photograph(60, 50)
        image = Image.fromarray(pixels)
        assert np.abs(OPS["grey"](pixels).astype(int) - np.asarray(PILLOW["grey"](image))).max() <= 1
        assert (OPS["mirror"](pixels) == np.asarray(PILLOW["mirror"](image))).all()
        for radius in (0.1, 0.7, 2.0):
            difference = OPS["blur"](pixels, radius).astype(int) - np.asarray(PILLOW["blur"](image, radius))
            assert np.abs(difference).mean() < 1.5


class TestResize:
    @pytest.mark.parametrize("shrink", [0.5, 0.9, 1.0, 1.1, 1.3, 1.7, 2.2, 2.6, 4.0])
    def test_is_close_to_pillows_bicubic(self, shrink):
        side = round(96 * shrink)
        pixels = photograph(side, side)
        ours = resize(pixels, 96, BICUBIC).astype(int)
        theirs = np.asarray(Image.fromarray(pixels).resize((96, 96), BICUBIC))
        assert np.abs(ours - theirs).mean() < (0 if shrink == 1.0 else 1.5) + 1e-9
        assert abs(ours.mean() - theirs.mean()) < 0.2

    def test_each_side_has_its_own_filter(self):
        pixels = photograph(200, 100)
        ours = resize(pixels, 100, BICUBIC).astype(int)
        assert np.abs(ours - np.asarray(Image.fromarray(pixels).resize((100, 100), BICUBIC))).mean() < 3.0

    def test_fine_stripes_vanish(self):
        """Without a filter before, stripes of 1 pixel would turn into wide ones."""
        pixels = np.zeros((210, 210, 3), dtype=np.uint8)
        pixels[::2] = 255
        assert resize(pixels, 100, BICUBIC)[5:-5].std() < 30


class TestTransform:
    crop = RandomResizedCrop(32, scale=(0.2, 1.0), ratio=(0.75, 4 / 3), resample=BICUBIC)

    def both(self, crop, seed, channels=3, pixels=None):
        """Our pixels and Pillow's for the same draws."""
        source = Memory(encoded(photograph(100, 80, seed) if pixels is None else pixels, quality=95))
        transform = TrainTransform(crop, hflip=0.5, augmentation=None)
        ours = OpenCVDataset(source, transform, channels=channels, fast=False).pixels(0, np.random.default_rng(seed))
        image = source.image(0) if channels == 3 else source.image(0).convert("L")
        return ours.astype(int), transform(image, np.random.default_rng(seed)).astype(int)

    @pytest.mark.parametrize("kind", [[3, 30, 30], [3, 32, 32]], ids=["size", "type"])
    def test_pixels_that_do_not_fit_a_batch_are_not_lost(self, kind):
        """OpenCV would leave the batch as it was, with another image in it."""
        transform = TrainTransform(self.crop, hflip=0.5, augmentation=lambda image, rng: image.astype("float32"))
        transform = transform if kind[1] == 32 else TrainTransform(self.crop, hflip=0.5, augmentation=None)
        dataset = OpenCVDataset(Memory(encoded(photograph(100, 80), quality=95)), transform)
        batch = np.zeros([1, *kind], "uint8").transpose(0, 2, 3, 1)
        assert "AssertionError" in str(dataset.read([(0, (0, 0, 0))], batch).error)

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
        source = CifarSource(pixels[None], np.zeros(1, np.int32), ["a"], place="x")
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
