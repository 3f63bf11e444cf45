"""Decoding: Pillow's own pixels for every mode, and a message that names the image for everything unreadable."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paddlevit.data.decode import decode
from paddlevit.errors import UserError

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey16() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 65536, (24, 40), dtype=np.uint16))


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
    "16-bit png": encoded(grey16(), "PNG"),
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
        (b"no image at all", "no known format"),
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 24 - 1)
    with warnings.catch_warnings(), pytest.raises(UserError, match="x.png has 40 x 24 pixels, allowed: 959 in all"):
        warnings.simplefilter("ignore")
        decode(FILES["rgb png"], "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 24)
    decode(FILES["rgb png"], "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="x.png is not a readable image: .*exceeds limit"):
        decode(FILES["rgb png"], "x.png")


@settings(max_examples=200, deadline=None)
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
