"""prepare_data.py split: every class has its share on both sides, groups stay together, and nothing is copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paddlevit.commands.prepare_data import main
from paddlevit.data.prepare import divided
from paddlevit.data.sources import open_imagenet


@pytest.fixture
def photos(tmp_path):
    """Ten, five and two images of three classes; of each two in a row, one patient."""
    folder = tmp_path / "photos"
    for name, count in (("b", 10), ("a c", 5), ("d", 2)):
        for i in range(count):
            path = folder / name / ("more" if i % 2 else ".") / f"patient{i // 2}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i, i, i)).save(path)
    return folder


def texts(folder):
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


def counts(folder, split):
    source = open_imagenet(folder, split)
    return np.bincount(source.labels, minlength=3).tolist()


def paths(folder, split):
    source = open_imagenet(folder, split)
    return {str(Path(source.name(i)).resolve()) for i in range(len(source))}


def test_one_split(photos, capsys):
    assert main(["split", str(photos)]) == 0
    assert f"13 images to train on and 4 to validate, 3 classes, in {photos}\n" == capsys.readouterr().out
    assert counts(photos, "train") == [4, 8, 1] and counts(photos, "val") == [1, 2, 1]
    train, val = paths(photos, "train"), paths(photos, "val")
    assert not train & val and train | val == {str(path) for path in photos.rglob("*.png")}
    assert open_imagenet(photos, "val").class_names == ["a c", "b", "d"]
    assert texts(photos)["class_names.txt"] == "a c\nb\nd\n"
    assert all(not line.startswith("/") for line in texts(photos)["val_list.txt"].splitlines())


def test_again_the_same_and_with_another_seed_another(photos, tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert main(["split", str(photos), "-output", str(tmp_path / name), "-seed", str(seed)]) == 0
    assert texts(tmp_path / "one") == texts(tmp_path / "two") != texts(tmp_path / "three")
    assert paths(tmp_path / "one", "val") <= {str(path) for path in photos.rglob("*.png")}, "absolute paths"
    assert not list(photos.glob("*.txt"))
    assert [main(["split", str(photos), "-output", str(photos / "lists")]) for _ in range(2)] == [0, 0], "no class"
    assert main(["split", str(photos), "-output", str(tmp_path / "one"), "-seed", "1"]) == 2
    assert "is there already, with other content" in capsys.readouterr().err
    assert main(["split", str(photos), "-output", str(tmp_path / "one"), "-seed", "1", "-force"]) == 0
    assert texts(tmp_path / "one") == texts(tmp_path / "three")


def test_folds_validate_every_image_once(photos, capsys):
    assert main(["split", str(photos), "-folds", "2"]) == 0
    seen = [paths(photos / f"fold_{i}", "val") for i in range(2)]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == {str(path) for path in photos.rglob("*.png")}
    assert paths(photos / "fold_0", "train") == seen[1]
    assert [counts(photos / f"fold_{i}", "val") for i in range(2)] == [[3, 5, 1], [2, 5, 1]]
    assert main(["split", str(photos), "-folds", "2"]) == 0, "the folds are no classes"
    capsys.readouterr()
    assert main(["split", str(photos), "-folds", "3"]) == 2
    assert main(["split", str(photos), "-folds", "3", "-force"]) == 0
    assert f"{photos}/fold_2/val_list.txt has no image of d\n" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", [r"patient\d", r"patient(\d)_"])
def test_a_group_stays_on_one_side(photos, pattern):
    assert main(["split", str(photos), "-val", "0.4", "-group_by", pattern]) == 0
    patients = [{Path(path).name[7] for path in paths(photos, split)} for split in ("train", "val")]
    assert not patients[0] & patients[1] and patients[0] | patients[1] == set("01234")


@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    shares=st.sampled_from([[0.8, 0.2], [0.5, 0.5], [0.95, 0.05], [0.2] * 5]),
    seed=st.integers(0, 9),
)
def test_shares_of_every_class(sizes, shares, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    sides = divided(labels, [str(i) for i in range(len(labels))], shares, seed=seed)
    for label, size in enumerate(sizes):
        own = np.bincount(sides[labels == label], minlength=len(shares))
        assert (abs(own - np.asarray(shares) * size) < 1).all() or own.min() == 1
        assert own.min() >= 1 or size < len(shares)


@given(
    groups=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=30, max_size=60), seed=st.integers(0, 9)
)
def test_shares_of_groups_are_near(groups, seed):
    rows = [(label, str(number)) for number, (size, label) in enumerate(groups) for _ in range(size)]
    labels = np.asarray([label for label, _ in rows])
    sides = divided(labels, [group for _, group in rows], [0.75, 0.25], seed=seed)
    for label in np.unique(labels):
        assert abs((sides[labels == label] == 1).sum() - 0.25 * (labels == label).sum()) <= 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-val", "1"], "-val must be above 0 and below 1, got 1.0"),
        (["-folds", "1"], "-folds must be 2 or more, got 1"),
        (["-folds", "2", "-val", "0.5"], "-val and -folds exclude each other"),
        (["-group_by", "("], "-group_by '(' is not a regular expression: "),
        (["-group_by", r"patient[1-9]"], "-group_by 'patient[1-9]' finds nothing in a c/"),
        (["-seed", "-1"], "-seed must be 0 to 4294967295, got -1"),
        (["-folds", "3", "-group_by", "^(.)"], "no image is left for train in"),
    ],
)
def test_mistakes(photos, argv, said, capsys):
    assert main(["split", str(photos), *argv]) == 2
    assert said in capsys.readouterr().err
    assert not list(photos.rglob("*.txt"))


def test_where_one_fold_has_other_lists_none_is_written(photos, tmp_path, capsys):
    other = tmp_path / "lists" / "fold_1" / "val_list.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine 0\n")
    assert main(["split", str(photos), "-folds", "2", "-output", str(tmp_path / "lists")]) == 2
    assert f"{other} is there already, with other content" in capsys.readouterr().err
    assert list(tmp_path.rglob("*_list.txt")) == [other]


def test_folders_that_are_no_classes(tmp_path, capsys):
    assert main(["split", str(tmp_path / "nowhere")]) == 2
    assert main(["split", str(tmp_path)]) == 2
    (tmp_path / "train").mkdir()
    assert main(["split", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "there is no folder" in errors[0] and "has no class folders" in errors[1]
    assert "has a folder train or val: it is divided already" in errors[2]
