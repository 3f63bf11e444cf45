"""The photographs of the walk-through: always the same, and their things are where evaluation looks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from paddlevit.commands.prepare_data import main
from paddlevit.data.layouts import open_imagenet


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    assert main(["photos", str(folder)]) == 0
    return folder


def test_they_are_a_data_set(photos):
    for split, count in (("train", 30), ("val", 10)):
        source = open_imagenet(photos, split)
        assert list(source.class_names) == ["ball", "brick", "leaf"]
        assert np.bincount(source.labels).tolist() == [count] * 3
    files = sorted(photos.rglob("*.jpg"))
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == len(files) == 120


def test_things_are_in_the_middle_square(photos):
    """Leaves and bricks have strong colours and the scenery has pale ones: most of that colour is in the square."""
    for file in sorted(photos.glob("train/leaf/*.jpg"))[:10]:
        pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
        strong = pixels.max(axis=2) - pixels.min(axis=2) > 70
        height, width = strong.shape
        side = min(height, width)
        middle = strong[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
        assert middle.sum() > 0.7 * strong.sum() > 0, file


def test_a_folder_with_other_things_is_left_alone(photos, capsys):
    before = (photos / "train/ball/000.jpg").stat().st_mtime_ns
    assert main(["photos", str(photos)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (photos / "train/ball/000.jpg").stat().st_mtime_ns == before
