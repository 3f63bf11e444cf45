"""Decoding: Pillow's own pixels for every mode of 8 bits, levels of deeper ones, orientation, and a message that names
the image for everything unreadable."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paddlevit.config import get_config
from paddlevit.data import build_decoding, build_eval_loader, build_preparation, build_train_loader
from paddlevit.data.decode import Decoding, decode, is_image
from paddlevit.errors import UserError

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by 90 degrees

FILES = {
    "rgb jpeg": encoded(RGB, "JPEG"),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True),
    "grey jpeg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    "turned jpeg": encoded(RGB, "JPEG", exif=EXIF),
    "rgb png": encoded(RGB, "PNG"),
    "grey png": encoded(RGB.convert("L"), "PNG"),
    "grey and alpha png": encoded(RGB.convert("LA"), "PNG"),
    "alpha png": encoded(Image.fromarray(RNG.integers(0, 256, (24, 40, 4), dtype=np.uint8)), "PNG"),
    "palette png": encoded(RGB.quantize(16), "PNG"),
    "palette png with a transparent colour": encoded(RGB.quantize(16), "PNG", transparency=3),
    "black and white png": encoded(RGB.convert("1"), "PNG"),
    "webp": encoded(RGB, "WEBP", lossless=True),
    "bmp": encoded(RGB, "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "gif": encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
    "ppm": encoded(RGB, "PPM"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_pillows(name):
    with Image.open(io.BytesIO(FILES[name])) as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = decode(FILES[name], name)
    assert decoded.mode == "RGB" and decoded.size == (40, 24)
    assert (np.asarray(decoded) == expected).all()


def test_lossless_files_give_back_their_pixels():
    assert np.asarray(decode(FILES["rgb png"], "x")).tolist() == np.asarray(RGB).tolist()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"no image at all", "does not begin as JPEG, PNG, WebP, BMP, TIFF, GIF"),
        (FILES["rgb jpeg"][:-200], "truncated"),
        (FILES["rgb png"][:200], "not a readable image"),
        (FILES["rgb png"][:8] + b"\xff" * 100, "not a readable image"),
    ],
)
def test_unreadable_files_are_named(data, said):
    with pytest.raises(UserError) as caught:
        decode(data, "train/3/7.jpg")
    assert "BytesIO" not in str(caught.value)
    assert said in str(caught.value) and str(caught.value).startswith("train/3/7.jpg ")


def test_too_many_pixels(monkeypatch):
    with pytest.raises(UserError, match=r"x.png has 40 x 24 pixels, allowed: 959 in all \(DATA.MAX_PIXELS\)"):
        decode(FILES["rgb png"], "x.png", Decoding(max_pixels=959))
    decode(FILES["rgb png"], "x.png", Decoding(max_pixels=960))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"x.png has too many pixels"):
        decode(FILES["rgb png"], "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the key allows more than Pillow does by itself
        decode(FILES["rgb png"], "x.png", Decoding(max_pixels=10**9))
    assert Image.MAX_IMAGE_PIXELS == 10**9


LEVELS = np.arange(65536).reshape(256, 256)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(LEVELS.astype(np.uint16)), "PNG"), LEVELS / 257),
        (encoded(Image.fromarray(LEVELS.astype(np.uint16)), "TIFF"), LEVELS / 257),
        (encoded(Image.fromarray(LEVELS.astype(">u2")), "TIFF"), LEVELS / 257),
        (b"P5 256 256 65535\n" + LEVELS.astype(">u2").tobytes(), LEVELS / 257),
        (encoded(Image.fromarray((LEVELS // 256).astype(np.uint16)), "PNG"), LEVELS // 256 / 257),
        (encoded(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), LEVELS / 257),
        (encoded(Image.fromarray((LEVELS // 256).astype(np.int32)), "TIFF"), LEVELS // 256),
        (encoded(Image.fromarray((LEVELS * 1000 - 70000).astype(np.int32)), "TIFF"), LEVELS / 257),
        (encoded(Image.fromarray((LEVELS / 65535).astype(np.float32)), "TIFF"), LEVELS / 257),
        (encoded(Image.fromarray((LEVELS / 257).astype(np.float32)), "TIFF"), LEVELS / 257),
        (encoded(Image.fromarray((LEVELS / 65535 - 0.5).astype(np.float32)), "TIFF"), LEVELS / 257),
        (encoded(Image.fromarray(np.where(LEVELS, LEVELS / 65535, np.nan).astype(np.float32)), "TIFF"), LEVELS / 257),
        (encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), np.zeros((9, 9))),
        (encoded(Image.fromarray(np.full((9, 9), -3.5, np.float32)), "TIFF"), np.zeros((9, 9))),
        (encoded(Image.fromarray(LEVELS.astype(np.uint16)), "TIFF", tiffinfo={0x0106: 0}), 255 - LEVELS / 257),
        (b"Pf 256 256 -1.0\n" + (LEVELS[::-1] / 65535).astype("<f4").tobytes(), LEVELS / 257),
    ],
)
def test_deep_grey_keeps_its_levels(data, expected):
    pixels = np.asarray(decode(data, "x"))
    assert abs(pixels - expected[:, :, None]).max() <= 0.5 + 1e-4


TURNS = {  # by EXIF's number: what brings the pixels upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


def held(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, *TURNS, 9])
def test_orientation(kind, orientation):
    data = held(orientation, kind)
    lying = np.asarray(decode(data, "x"))
    assert lying.shape == (24, 40, 3)
    upright = TURNS.get(orientation, lambda pixels: pixels)(lying)
    assert (np.asarray(decode(data, "x", Decoding(upright=True))) == upright).all()


def test_damaged_exif_data_is_no_damaged_image():
    data = held(6, "JPEG").replace(b"Exif\0\0MM", b"Exif\0\0XX")
    assert decode(data, "x", Decoding(upright=True)).size == (40, 24)


@pytest.mark.parametrize("resizer", ["opencv", "pillow"])
@pytest.mark.parametrize(("key", "upright"), [("ignore", False), ("apply", True)])
def test_one_orientation_in_training_evaluation_and_prediction(tmp_path, resizer, key, upright):
    """The left half of the file is white: upright, it is the top."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / split / "a" / "0.jpg", exif=exif, quality=100)
    opts = ["DATA.DATA_PATH", str(tmp_path), "DATA.EXIF_ORIENTATION", key, "DATA.IMAGE_SIZE", 32, "TRAIN.HFLIP", 0.0]
    opts += ["TRAIN.RESIZER", resizer, "TRAIN.CROP_SCALE", [1.0, 1.0], "TRAIN.RAND_AUGMENT", False]
    opts += ["TRAIN.CROP", "random_resized", "TRAIN.CROP_RATIO", [1.0, 1.0], "TRAIN.COLOR_JITTER", 0.0]
    opts += ["TRAIN.RANDOM_ERASE_PROB", 0.0, "DATA.NUM_WORKERS", 0, "DATA.BATCH_SIZE", 1, "TRAIN.REPEATED_AUG", 1]
    config = get_config("pit_digits", opts)
    file = str(tmp_path / "val" / "a" / "0.jpg")
    prepare, normalize = build_preparation(config)
    served = prepare(decode(Path(file).read_bytes(), "x", build_decoding(config)))
    loaders = [build_train_loader(config).epoch(0), build_eval_loader(config)]
    for images in (*(next(iter(loader))[0] for loader in loaders), normalize(served[None])):
        image = images[0, 0].numpy()
        assert (image[2, 28] > image[28, 2]) == upright


def test_names_of_images():
    kinds = ["jpg", "jpeg", "jpe", "jfif", "JPG", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm"]
    assert all(is_image(f"a b.{kind}".encode()) for kind in kinds)
    assert not any(is_image(name) for name in (b"a.txt", b"jpg", b".a.jpg", b"a.jpg.part", b"a.heic"))


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_damaged_files_are_read_or_named(name, data):
    damaged = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert decode(damaged, "x.jpg").mode == "RGB"
        except UserError as error:
            assert "x.jpg" in str(error)
