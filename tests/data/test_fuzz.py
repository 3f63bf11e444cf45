"""Damaged image files: whatever a disk or a person makes of them, each is read or named, and soon.

FUZZ_EXAMPLES in the environment says how many (300 where it does not).
"""

from __future__ import annotations

import io
import multiprocessing
import os
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from paddlevit.data.decode import decode
from paddlevit.errors import UserError

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
SECONDS_EACH = 30.0


def files():
    """Files of both kinds, in the forms that decoders treat differently."""
    rng = np.random.default_rng(0)
    waves = 128 + 90 * np.sin(np.add.outer(np.arange(90), np.arange(120)) / 9)
    pixels = (waves[..., None] + rng.normal(0, 20, (90, 120, 3))).clip(0, 255).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = [
        (rgb, "JPEG", {"quality": 90}),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb, "JPEG", {"subsampling": 0, "restart_marker_rows": 1}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}),
        (rgb.quantize(64), "PNG", {"transparency": 3}),
        (rgb.convert("LA"), "PNG", {}),
    ]
    for image, kind, options in forms:
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield file.getvalue()


def damaged(content, rng):
    """Some bits turned, bytes replaced, a piece cut off, left out or repeated, or sides of 50,000 pixels."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(len(data)))
        data[at] = data[at] ^ (1 << int(rng.integers(8))) if rng.random() < 0.5 else int(rng.integers(256))
    start, end = sorted(int(place) for place in rng.integers(len(data), size=2))
    kind = rng.integers(8)
    if kind == 0:
        return bytes(data[:end])
    if kind == 1:
        return bytes(data[:start] + data[end:])
    if kind == 2:
        return bytes(data[:end] + data[start:])
    return bomb(content) if kind == 3 else bytes(data)


def bomb(content):
    """The file with a header that says 50,000 x 50,000 pixels."""
    data = bytearray(content)
    if content.startswith(b"\x89PNG"):
        data[16:24] = (50_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    else:
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if marker in content:
                at = content.index(marker) + 5
                data[at : at + 4] = (50_000).to_bytes(2, "big") * 2
                break
    return bytes(data)


def read_by_pillow(data):
    return np.asarray(decode(data, "x.jpg"))


def read_in_parts(data):
    """The upper half, and all."""
    from paddlevit.data.opencv import read_part

    read_part(one(data), 0, lambda width, height: (0, 0, width, (height + 1) // 2), side=32, fast=True)
    return read_part(one(data), 0, lambda width, height: (0, 0, width, height), side=32, fast=False)


READERS = [read_by_pillow, read_in_parts]


def one(data):
    """A source of one image."""
    from paddlevit.data.sources import Source

    class One(Source):
        class_names = ("a",)
        labels = np.zeros(1, dtype=np.int32)

        def read(self, i):
            return data

        def name(self, i):
            return "x.jpg"

    return One()


def go_through(read, num, report):
    """Report (files read, files named, longest time); a crash or a hang leaves no report."""
    rng, seeds = np.random.default_rng(1), list(files())
    counts, longest = [0, 0], 0.0
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg says what it thinks of such files
    for i in range(num):
        data = damaged(seeds[i % len(seeds)], rng)
        start = time.perf_counter()
        try:
            pixels = read(data)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            counts[0] += 1
        except UserError as error:
            assert "x.jpg" in str(error)
            counts[1] += 1
        longest = max(longest, time.perf_counter() - start)
    report.put((*counts, longest))


@pytest.mark.parametrize("read", READERS)
def test_damaged_files_are_read_or_named(read):
    context = multiprocessing.get_context("fork")
    report = context.SimpleQueue()
    process = context.Process(target=go_through, args=(read, NUM_EXAMPLES, report))
    process.start()
    process.join(60 + NUM_EXAMPLES * 0.1)
    process.kill()
    assert process.exitcode == 0 and not report.empty()
    num_read, num_named, longest = report.get()
    assert num_read + num_named == NUM_EXAMPLES
    assert min(num_read, num_named) > NUM_EXAMPLES / 10 and longest < SECONDS_EACH
    print(f"\n{read.__name__}: {num_read} read, {num_named} named, longest {longest:.3f} s")


@pytest.mark.parametrize("read", READERS)
def test_bombs_are_named_before_they_are_unpacked(read):
    for content in files():
        with pytest.raises(UserError, match="x.jpg"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(bomb(content))
