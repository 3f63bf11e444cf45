"""prepare_data.py: the demo's digits and list files, as users start it and as the sources read it."""

from __future__ import annotations

import builtins
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlevit.commands.prepare_data import main
from paddlevit.config import get_config
from paddlevit.data import open_source, prepare
from paddlevit.data.prepare import cuts, photographs
from paddlevit.data.sources import FolderSource, open_imagenet
from paddlevit.errors import UserError

FIRST_VAL, SUM_VAL = [3, 7, 13, 19, 36, 38, 43, 48, 53, 55], 313341


@pytest.fixture(scope="module")
def sklearns():
    return pytest.importorskip("sklearn.datasets").load_digits()


@pytest.fixture(scope="module")
def digits(sklearns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "new" / "folder"
    assert main(["digits", str(folder)]) == 0
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_digits_are_scikit_learns(digits, sklearns):
    seen = []
    for split, count in (("train", 1437), ("val", 360)):
        source = open_imagenet(digits, split)
        assert len(source) == count and source.class_names == [str(i) for i in range(10)]
        for i in range(len(source)):
            path = Path(source.name(i))
            number = int(path.stem)
            assert path.parts[-3:-1] == (split, str(source.label(i))) and source.label(i) == sklearns.target[number]
            seen.append(number)
            if i % 100 == 0:
                with Image.open(path) as image:
                    assert (image.mode, image.size) == ("L", (32, 32))
                    small = Image.fromarray(np.rint(sklearns.images[number] * 255 / 16).astype("uint8"))
                    assert (np.asarray(image) == np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))).all()
    assert sorted(seen) == list(range(1797))
    assert len(files(digits)) == 1797 + 3


def test_the_split_never_changes(digits, sklearns):
    """Accuracies on the 360 images are compared between versions."""
    numbers = [int(Path(line.split()[0]).stem) for line in (digits / "val_list.txt").read_text().splitlines()]
    assert numbers[:10] == FIRST_VAL and sum(numbers) == SUM_VAL
    shares = np.bincount(sklearns.target[numbers], minlength=10) / np.bincount(sklearns.target)
    assert abs(shares - 360 / 1797).max() < 1 / 174


def test_the_demo_reads_them(digits):
    assert open_source(get_config("pit_digits", ["DATA.DATA_PATH", str(digits)]), "val").num_classes == 10


def test_again_is_harmless(digits, capsys):
    before = files(digits)
    assert main(["digits", str(digits)]) == 0 and main(["list", str(digits)]) == 2
    assert "train_list.txt is there already, with other content" in capsys.readouterr().err
    assert files(digits) == before


def test_what_was_interrupted_has_no_lists(tmp_path, monkeypatch):
    saved = Image.Image.save
    (tmp_path / "unfinished").write_text("mine")
    calls = []

    def interrupted(self, file, *args, **options):
        calls.append(file)
        if len(calls) == 200:
            raise KeyboardInterrupt
        saved(self, file, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        assert main(["digits", str(tmp_path)]) == 130
    assert os.listdir(tmp_path) == ["unfinished"]
    assert main(["digits", str(tmp_path)]) == 0
    assert len(files(tmp_path)) == 1797 + 3 + 1


def test_another_data_set_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "train_list.txt").write_text("mine.jpg 0\n")
    assert main(["digits", str(tmp_path)]) == 2
    assert "train_list.txt is there already, with other content" in capsys.readouterr().err
    assert files(tmp_path) == {"train_list.txt": b"mine.jpg 0\n"}


def test_without_scikit_learn(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["digits", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: these images come with scikit-learn: pip install '.[demo]' in the clone\n"


def test_photographs_are_cut_at_places_that_do_not_overlap(tmp_path, capsys):
    folder = tmp_path / "photos"
    assert main(["photos", str(folder)]) == 0
    assert "90 cuts of photographs to train on and 30 to validate, of flower, temple, tree" in capsys.readouterr().out
    for split, count in (("train", 30), ("val", 10)):
        source = open_imagenet(folder, split)
        assert list(source.class_names) == ["flower", "temple", "tree"]
        assert np.bincount(source.labels).tolist() == [count] * 3
    assert len(set(files(folder).values())) == 120
    seen = {name: np.zeros(photo.size[::-1], dtype=int) for name, photo in photographs().items()}
    for path, photo, (left, top, right, bottom) in cuts():
        assert Image.open(folder / path).size == (right - left, bottom - top)
        seen[photo][top:bottom, left:right] |= 1 if path.startswith("train") else 2
    assert {value for place in seen.values() for value in np.unique(place).tolist()} == {0, 1, 2}, "3 would be both"
    assert main(["photos", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_lists_of_folders(tmp_path, capsys):
    paths = ["train/b/1.png", "train/a x/2 3.JPG", "train/b/4.jpeg", "val/b/5.png"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    by_folder = {split: open_imagenet(tmp_path, split) for split in ("train", "val")}
    expected = {
        split: [(source.name(i), source.label(i)) for i in range(len(source))] for split, source in by_folder.items()
    }
    assert main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"listed 3 images of train and 1 images of val, 2 classes, in {tmp_path}\n"
    assert (tmp_path / "train_list.txt").read_text() == "train/a x/2 3.JPG 0\ntrain/b/1.png 1\ntrain/b/4.jpeg 1\n"
    assert (tmp_path / "class_names.txt").read_text() == "a x\nb\n"
    for split, rows in expected.items():
        source = open_imagenet(tmp_path, split)
        assert [(source.name(i), source.label(i)) for i in range(len(source))] == rows
        assert source.class_names == by_folder[split].class_names
    assert main(["list", str(tmp_path)]) == 0
    (tmp_path / "train" / "b" / "new.png").write_bytes(b"")
    assert main(["list", str(tmp_path)]) == 2
    assert main(["list", str(tmp_path), "-force"]) == 0
    assert len(open_imagenet(tmp_path, "train")) == 4


@pytest.fixture
def folders(tmp_path):
    """Ten images to train on and two to validate with, in folders of two classes."""
    for i, split in enumerate(["train"] * 10 + ["val"] * 2):
        path = tmp_path / "images" / split / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    return tmp_path / "images"


def rows(source):
    return [(source.read(i), source.label(i)) for i in range(len(source))]


class TestZip:
    def test_holds_the_same_images(self, folders, capsys):
        before = {split: open_imagenet(folders, split) for split in ("train", "val")}
        assert main(["zip", str(folders)]) == 0
        assert f"12 images are in zip files, with their maps, in {folders}" in capsys.readouterr().out
        for split, source in before.items():
            packed = open_imagenet(folders, split)
            assert type(packed).__name__ == "ZipSource" and packed.class_names == source.class_names
            assert rows(packed) == rows(source)
            with zipfile.ZipFile(folders / f"{split}.zip") as archive:
                assert archive.testzip() is None
                assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        written = files(folders)
        assert main(["zip", str(folders)]) == 0 and files(folders) == written

    def test_from_lists_to_another_folder(self, folders, tmp_path):
        assert main(["list", str(folders)]) == 0
        assert main(["zip", str(folders), "-output", str(tmp_path / "packed")]) == 0
        for split in ("train", "val"):
            assert rows(open_imagenet(tmp_path / "packed", split)) == rows(open_imagenet(folders, split))

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError("0.png is gone")])
    def test_what_was_interrupted_leaves_nothing(self, folders, monkeypatch, stop):
        before, read, reads = files(folders), FolderSource.read, []

        def interrupted(self, i):
            reads.append(i)
            if len(reads) == 7:
                raise stop
            return read(self, i)

        monkeypatch.setattr(FolderSource, "read", interrupted)
        assert main(["zip", str(folders)]) == (2 if isinstance(stop, UserError) else 130)
        assert files(folders) == before
        assert main(["zip", str(folders)]) == 0 and len(open_imagenet(folders, "train")) == 10

    def test_the_same_images_make_the_same_files(self, folders, tmp_path):
        for name in ("one", "two"):
            assert main(["zip", str(folders), "-output", str(tmp_path / name)]) == 0
        assert files(tmp_path / "one") == files(tmp_path / "two")

    def test_a_name_that_is_no_text(self, folders, capsys):
        os.rename(folders / "train/class 0/0.png", os.fsencode(folders) + b"/train/class 0/\xff.png")
        assert main(["zip", str(folders)]) == 2
        assert "names in a zip file are UTF-8; rename the file" in capsys.readouterr().err

    def test_other_members_stay(self, folders, capsys):
        with zipfile.ZipFile(folders / "train.zip", "w") as archive:
            archive.writestr("mine.jpg", b"mine")
        assert main(["zip", str(folders)]) == 2
        assert "train.zip is there already, with other members" in capsys.readouterr().err
        assert main(["zip", str(folders), "-force"]) == 0
        assert len(open_imagenet(folders, "train")) == 10


class TestCheck:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_names_every_bad_image(self, folders, tmp_path, capsys, workers):
        report = tmp_path / "bad.txt"
        argv = ["check", str(folders), "-workers", str(workers), "-output", str(report)]
        assert main(argv) == 0 and not report.exists()
        assert "train: 10 images of 2 classes, 5 to 5 of each, 0 of them cannot be read" in capsys.readouterr().out
        bad = [folders / "train" / "class 0" / "4.png", folders / "val" / "class 1" / "11.png"]
        for path in bad:
            path.write_bytes(path.read_bytes()[:40])
        assert main(argv) == 2
        output = capsys.readouterr()
        assert "2 images cannot be read" in output.err and "val: 2 images of 2 classes" in output.out
        lines = report.read_text().splitlines()
        assert [line.startswith(str(path)) for line, path in zip(lines, bad)] == [True, True]

    def test_a_split_that_cannot_be_opened_is_no_split_that_is_not_there(self, folders, capsys):
        assert main(["list", str(folders)]) == 0
        (folders / "train" / "class 0" / "4.png").unlink()
        assert main(["check", str(folders), "-workers", "0"]) == 2
        assert "train_list.txt, line" in capsys.readouterr().err
        for name in ("train", "train_list.txt"):
            path = folders / name
            path.rename(folders / f"away_{name}")
        flags = ["-workers", "0", "-dataset", "folder"]  # as `train` takes it
        assert main(["check", str(folders), *flags]) == 0, "as ImageNet's validation images alone"

    def test_warnings_and_data_of_the_process_stay(self, folders):
        source, filters = open_imagenet(folders, "train"), list(warnings.filters)
        looks = prepare.look_at_images(source, prepare.check_image, num_workers=0)
        assert next(looks) == "" and warnings.filters == filters and not hasattr(prepare, "_kept")

    def test_a_process_that_dies_is_told(self, folders, monkeypatch, capsys):
        monkeypatch.setattr(FolderSource, "image", lambda self, i: os._exit(1))
        assert main(["check", str(folders), "-workers", "2"]) == 2
        assert "a process that decodes images has died" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["digit", "x"], "invalid choice: 'digit'"),
        (["list"], "DATA_DIR"),
        (["list", "nowhere"], "nowhere has neither a folder train nor a folder val"),
        (["digits", "/proc/nowhere"], "/proc/nowhere"),
        (["zip", "nowhere"], "nowhere has no folders train and val"),
        (["check", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(argv, said, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_file_name_that_no_list_can_hold(tmp_path, capsys):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "x\ny.png").write_bytes(b"")
    assert main(["list", str(tmp_path)]) == 2
    assert "line break" in capsys.readouterr().err


def test_a_folder_that_is_no_data_set(capsys):
    assert main(["list", "nowhere"]) == 2
    assert "error: nowhere has neither" in capsys.readouterr().err
