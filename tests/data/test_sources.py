"""Data folders of every layout, and what is said about those that cannot be used."""

from __future__ import annotations

import logging
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlevit.config import get_config
from paddlevit.data import build_eval_loader, build_train_loader, open_source
from paddlevit.data import sources as sources_module
from paddlevit.data.sources import find_images, open_imagenet
from paddlevit.errors import MissingFileError, UserError


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8))


def folders(root, split, counts):
    """Write `counts[class]` images to root/split/class/; their grey value is their number in the split."""
    value = 0
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            picture(value).save(
                root / split / name / f"{i}.{('png', 'PNG', 'jpg', 'JPEG', 'jpeg')[i % 5]}", quality=100
            )
            value += 1
    return root


def listed(root, split, lines):
    (root / f"{split}_list.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return root


def content(source):
    return [(source.name(i), source.label(i)) for i in range(len(source))]


@pytest.fixture
def root(tmp_path):
    return folders(folders(tmp_path, "train", {"b": 3, "a": 2, "c d": 6}), "val", {"b": 2, "a": 1})


def test_folders(root):
    train, val = open_imagenet(root, "train"), open_imagenet(root, "val")
    assert train.class_names == val.class_names == ["a", "b", "c d"]
    assert train.num_classes == val.num_classes == 3
    assert train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert content(val) == [(f"{root}/val/a/0.png", 0), (f"{root}/val/b/0.png", 1), (f"{root}/val/b/1.PNG", 1)]
    values = [np.asarray(train.image(i)).mean() for i in range(len(train))]
    assert values == [3, 4, 0, 1, 2, *values[5:]] and sorted(np.round(values)) == list(range(11))


def test_hidden_files_are_left_out_and_others_counted(root, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    (root / "train" / "a" / "._0.png").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "a" / "notes.txt").write_text("x")
    assert len(open_imagenet(root, "train")) == 11
    assert "skipped 2 files" in caplog.text and "1 hidden, 1 .txt (a/._0.png, a/notes.txt)" in caplog.text


def test_an_empty_class_folder(root):
    (root / "train" / "d").mkdir()
    with pytest.raises(UserError, match=r"train/d holds no images"):
        len(open_imagenet(root, "train"))


def test_a_validation_class_without_training_images(root):
    folders(root, "val", {"e": 1})
    with pytest.raises(UserError, match=r"val/e: the images to train on have no class folder 'e'"):
        open_imagenet(root, "val")


def test_a_split_without_class_folders(root):
    for path in sorted((root / "val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="val has no class folders"):
        open_imagenet(root, "val")
    (root / "val").rmdir()
    with pytest.raises(MissingFileError, match="val is missing"):
        open_imagenet(root, "val")


def test_validation_images_alone(tmp_path):
    assert open_imagenet(folders(tmp_path, "val", {"x": 1, "y": 1}), "val").class_names == ["x", "y"]


def test_a_file_that_was_removed(root):
    source = open_imagenet(root, "val")
    len(source)
    (root / "val" / "a" / "0.png").unlink()
    with pytest.raises(MissingFileError, match="there is no file .*val/a/0.png"):
        source.image(0)


def test_lists_come_before_folders(root):
    listed(root, "train", ["train/a/0.png 1", "train/c d/1.PNG\t0"])
    listed(root, "val", ["val/b/0.png  1"])
    train, val = open_imagenet(root, "train"), open_imagenet(root, "val")
    assert content(train) == [(f"{root}/train/a/0.png", 1), (f"{root}/train/c d/1.PNG", 0)]
    assert train.class_names == val.class_names == ["c d", "a"]
    assert content(val) == [(f"{root}/val/b/0.png", 1)]
    assert np.asarray(val.image(0)).shape == (8, 8, 3)


def test_labels_that_no_image_has_are_told_once(root, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    listed(listed(root, "train", ["train/a/0.png 1", "train/b/0.png 3"]), "val", ["val/a/0.png 1"])
    open_imagenet(root, "train")
    open_imagenet(root, "val")
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}/train_list.txt: no image has label 0, of 0 to 3: labels count from 0"
    ]


def test_folders_of_numbers_in_another_order_are_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    folders(tmp_path, "train", {"2": 1, "10": 1})
    assert open_imagenet(tmp_path, "train").class_names == ["10", "2"]
    assert "10 before 2; a class_names.txt would order them" in caplog.text
    caplog.clear()
    (tmp_path / "class_names.txt").write_text("2\n10\n")
    assert open_imagenet(tmp_path, "train").class_names == ["2", "10"] and not caplog.text


def test_numbers_name_the_classes_where_folders_do_not(root):
    listed(root, "train", ["train/a/0.png 0", "train/b/0.png 0", "train/b/1.PNG 3"])
    assert open_imagenet(listed(root, "val", ["val/a/0.png 0"]), "train").class_names == ["0", "1", "2", "3"]


def test_class_names_file(root):
    (root / "class_names.txt").write_text("eins\nzwei\ndrei \n\n", encoding="utf-8")
    assert open_imagenet(root, "val").class_names == ["eins", "zwei", "drei"]
    listed(listed(root, "train", ["train/a/0.png 0"]), "val", ["val/a/0.png 0"])
    assert open_imagenet(root, "train").class_names == ["eins", "zwei", "drei"]
    listed(root, "train", ["train/a/0.png 0", "train/b/0.png 3"])
    with pytest.raises(UserError, match=r"train_list.txt, line 2: label 3 .*class_names.txt names 3 classes"):
        open_imagenet(root, "val")


def test_class_names_file_that_cannot_be_used(root):
    (root / "class_names.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="has 2 names, but there are 3 class folders"):
        open_imagenet(root, "train")
    (root / "class_names.txt").write_text("\n")
    with pytest.raises(UserError, match="class_names.txt is empty"):
        open_imagenet(root, "train")
    (root / "class_names.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="class_names.txt begins as UTF-16 and is damaged"):
        open_imagenet(root, "train")


def test_missing_data(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        open_imagenet(tmp_path / "nowhere", "train")
    assert "there is no data folder" in str(caught.value) and "-data_path" in str(caught.value)
    with pytest.raises(
        MissingFileError, match=r"no data folder .*test_sources.py \(it is a file\): name it with -data"
    ):
        open_imagenet(Path(__file__), "train")
    with pytest.raises(MissingFileError) as caught:
        open_imagenet(tmp_path, "val")
    for looked_for in ("val_list.txt", "val_map.txt", "val.zip", "val/<class>/"):
        assert f"{tmp_path}/{looked_for}" in str(caught.value)
    listed(tmp_path, "train", ["a.png 0"])
    with pytest.raises(MissingFileError, match=r"val_list.txt is missing, though .*train_list.txt is there"):
        open_imagenet(tmp_path, "val")


def test_a_listed_file_is_missing(root, monkeypatch):
    listed(listed(root, "val", ["val/a/0.png 0"]), "train", ["train/a/0.png 0", "", "train/a/x y.png 0"])
    with pytest.raises(MissingFileError, match=r"train_list.txt, line 3: there is no file .*train/a/x y.png"):
        open_imagenet(root, "train")
    monkeypatch.setattr(sources_module, "_MAX_CHECKED_FILES", 1)
    source = open_imagenet(root, "train")
    with pytest.raises(MissingFileError, match=r"train_list.txt, line 3: there is no file .*train/a/x y.png"):
        source.image(1)


def test_files_that_cannot_be_read(root):
    listed(root, "val", ["val 0"])
    with pytest.raises(UserError, match=f"{root}/val cannot be read: Is a directory"):
        open_imagenet(listed(root, "train", ["val 0"]), "val").read(0)
    (root / "val" / "a" / "0.png").write_bytes(b"?")
    listed(root, "val", ["val/a/0.png 0"])
    with pytest.raises(UserError, match="val/a/0.png is not a readable image"):
        open_imagenet(root, "val").image(0)


@pytest.mark.parametrize("build", [build_train_loader, build_eval_loader])
def test_a_label_that_the_network_has_no_class_for(root, build):
    config = get_config("pit_digits", ["DATA.DATA_PATH", str(root), "MODEL.NUM_CLASSES", 1, "DATA.BATCH_SIZE", 1])
    with pytest.raises(UserError) as caught:
        build(config)
    assert str(root) in str(caught.value) and "MODEL.NUM_CLASSES is 1" in str(caught.value)
    assert f"label {2 if build is build_train_loader else 1}," in str(caught.value)
    listed(listed(root, "train", ["train/a/0.png 0", "train/b/0.png 7"]), "val", ["val/a/0.png 0", "val/b/0.png 7"])
    with pytest.raises(UserError, match="_list.txt, line 2: label 7, but MODEL.NUM_CLASSES is 1"):
        build(config)


def test_open_source_expands_the_home_folder(root, monkeypatch):
    monkeypatch.setitem(os.environ, "HOME", str(root))
    assert len(open_source(get_config("pit_digits", ["DATA.DATA_PATH", "~"]), "val")) == 3


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jfif", "JPEG"), (".jpe", "JPEG"), (".WebP", "WEBP"), (".bmp", "BMP"), (".TIF", "TIFF"), (".tiff", "TIFF")]
    + [(".gif", "GIF"), (".ppm", "PPM"), (".png", "PNG"), (".JPEG", "JPEG")],
)
def test_formats_are_alike_in_training_evaluation_and_prediction(tmp_path, suffix, kind):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        picture(200).save(tmp_path / split / "a" / f"x{suffix}", kind)
    file = str(tmp_path / "val" / "a" / f"x{suffix}")
    assert list(find_images([str(tmp_path / "val")])) == [file]
    config = get_config("pit_digits", ["DATA.DATA_PATH", str(tmp_path), "DATA.BATCH_SIZE", 1, "DATA.NUM_WORKERS", 0])
    loaders = [build_train_loader(config).epoch(0), build_eval_loader(config)]
    assert [next(iter(loader))[1].tolist() for loader in loaders] == [[0], [0]]


@pytest.mark.parametrize("forms", ["NFC NFD", "NFD NFC"])
def test_splits_that_write_letters_in_different_ways(tmp_path, forms):
    for split, form in zip(("train", "val"), forms.split()):
        for name in ("Käse", "Öl"):
            folder = tmp_path / split / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            picture(200).save(folder / "x.png")
    source = open_imagenet(tmp_path, "val")
    assert (list(source.class_names), source.labels.tolist()) == (["Käse", "Öl"], [0, 1])
    twin = tmp_path / "val" / unicodedata.normalize(forms.split()[0], "Käse")
    twin.mkdir()
    picture(200).save(twin / "y.png")
    with pytest.raises(UserError, match="class folder '.*': 'Käse' is given twice, first in class folder '"):
        open_imagenet(tmp_path, "val")


def test_images_of_a_class_are_in_the_order_of_their_names(tmp_path):
    names = [f"{i * 7919 % 101}.png" for i in range(101)]
    (tmp_path / "val" / "a").mkdir(parents=True)
    for name in names:
        (tmp_path / "val" / "a" / name).write_bytes(b"")
    source = open_imagenet(tmp_path, "val")
    assert [source.relative_path(i) for i in range(len(source))] == sorted(f"a/{name}" for name in names)


def test_folders_below_class_folders(root):
    (root / "train" / "b" / "2024" / "may").mkdir(parents=True)
    (root / "train" / "b" / ".hidden").mkdir()
    (root / "train" / "b" / "2024" / "may" / "x.png").write_bytes(b"")
    (root / "train" / "b" / ".hidden" / "y.png").write_bytes(b"")
    (root / "train" / "b" / "back").symlink_to(root / "train" / "b")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "z.png").write_bytes(b"")
    (root / "train" / "b" / "other").symlink_to(root / "elsewhere")
    source = open_imagenet(root, "train")
    own = [source.relative_path(i) for i in range(len(source)) if source.label(i) == 1]
    assert own == ["b/0.png", "b/1.PNG", "b/2.jpg", "b/2024/may/x.png", "b/other/z.png"]


def test_links_between_class_folders_give_an_image_once_a_class(tmp_path):
    folders(tmp_path, "train", {"cat": 1, "dog": 1})
    for one, other in (("cat", "dog"), ("dog", "cat")):
        (tmp_path / "train" / one / other).symlink_to(f"../{other}")
    source = open_imagenet(tmp_path, "train")
    paths = [source.relative_path(i) for i in range(len(source))]
    assert paths == ["cat/0.png", "cat/dog/0.png", "dog/0.png", "dog/cat/0.png"]


def test_lists_of_a_split_are_no_classes_and_all_other_folders_are(root, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    (root / "train" / "a" / "class_names.txt").write_text("mine\n")
    (root / "train" / "fold_0").mkdir()
    (root / "train" / "fold_0" / "val_list.txt").write_text("a/1.png 0\n")
    folders(root, "train", {"fold_of_sheep": 1})
    assert open_imagenet(root, "train").class_names == ["a", "b", "c d", "fold_of_sheep"]
    assert f"{root}/train: skipped fold_0, where lists are that a split has written" in caplog.text


def test_what_is_left_out_is_counted_by_kind(root, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    for name in ("1.heic", "2.HEIC", "README", ".DS_Store"):
        (root / "train" / "a" / name).write_bytes(b"")
    len(open_imagenet(root, "train"))
    assert f"{root}/train: skipped 4 files that are not JPEG, PNG" in caplog.text
    assert "2 .heic, 1 hidden, 1 without suffix (a/.DS_Store, a/1.heic, a/2.HEIC)" in caplog.text
    (root / "val" / "stray.png").write_bytes(b"")
    open_imagenet(root, "val")
    assert f"{root}/val: skipped 1 images in no class folder (stray.png)" in caplog.text
    caplog.clear()
    assert len(list(find_images([str(root / "train" / "a")]))) == 2
    assert "skipped 4 files" in caplog.text, "predict names them too"


def test_class_names_decide_the_labels_of_folders_of_their_names(root):
    (root / "class_names.txt").write_text("c d\nnot there\na\nb\n")
    val = open_imagenet(root, "val")
    assert val.class_names == ["c d", "not there", "a", "b"] and content(val)[0] == (f"{root}/val/a/0.png", 2)
    (root / "class_names.txt").write_text("c d\na\n")
    with pytest.raises(UserError, match=r"class_names.txt has no class 'b', though there is a folder of that name"):
        open_imagenet(root, "train")


def test_class_names_and_lists_that_disagree(root):
    listed(listed(root, "train", ["train/a/0.png 0", "train/b/0.png 1"]), "val", ["val/b/0.png 1"])
    (root / "class_names.txt").write_text("b\na\n")
    with pytest.raises(UserError, match=r"train_list.txt, line 1: label 0 .* folder 'a', but .* has 'b' for it"):
        open_imagenet(root, "train")
    (root / "class_names.txt").write_text("a\nb\n")
    assert open_imagenet(root, "val").class_names == ["a", "b"]


def test_a_folder_of_classes_is_recognised(tmp_path):
    folders(tmp_path, ".", {"e": 1, "d": 1, "c": 1, "b": 1})
    with pytest.raises(MissingFileError) as caught:
        open_imagenet(tmp_path, "train")
    assert f"{tmp_path} has 4 class folders (b, c, d, ...), but no train/ and val/" in str(caught.value)
    assert f"`paddlevit prepare split {tmp_path}`" in str(caught.value)


COMPOSED, APART = "café", "cafe\u0301"


@pytest.mark.parametrize(("on_disk", "in_text"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_two_forms_of_the_same_letters(tmp_path, on_disk, in_text):
    for split in ("train", "val"):
        folders(tmp_path, split, {on_disk: 1, "a": 1})
    (tmp_path / "class_names.txt").write_text(f"{in_text}\na\n", encoding="utf-8")
    by_folder = open_imagenet(tmp_path, "train")
    assert by_folder.class_names == [COMPOSED, "a"] and by_folder.labels.tolist() == [0, 1]
    for split in ("train", "val"):
        listed(tmp_path, split, [f"{split}/a/0.png 1", f"{split}\\{in_text}/0.png 0"])
    (tmp_path / "class_names.txt").unlink()
    by_list = open_imagenet(tmp_path, "train")
    assert by_list.read(0) and by_list.read(1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_text_is_read_in_one_way(root, encoding, line_end):
    """Lists, maps and names as editors write them; -le and -be get their byte order mark as PowerShell gives it."""
    mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""

    def write(name, lines):
        (root / name).write_bytes((mark + line_end.join([*lines, "", ""])).encode(encoding))

    write("train_list.txt", ["train/a/0.png 0", "", "train/c d/1.PNG\t1"])
    write("val_list.txt", ["val/b/0.png 1"])
    write("class_names.txt", ["Käse", " ", "b"])
    train = open_imagenet(root, "train")
    assert content(train) == [(f"{root}/train/a/0.png", 0), (f"{root}/train/c d/1.PNG", 1)]
    assert train.class_names == ["Käse", "b"] and train.label_place(1).endswith("line 3")
    for split in ("train", "val"):
        (root / f"{split}_list.txt").rename(root / f"{split}_map.txt")
        with zipfile.ZipFile(root / f"{split}.zip", "w") as file:
            for name in ("train/a/0.png", "train/c d/1.PNG", "val/b/0.png"):
                file.write(root / name, name)
    zipped = open_imagenet(root, "train")
    assert [zipped.read(i) for i in range(2)] == [train.read(i) for i in range(2)]


def test_text_that_is_none(root):
    (root / "train_list.txt").write_bytes("train/a/0.png 0\n".encode("utf-16-le"))
    listed(root, "val", ["val/a/0.png 0"])
    with pytest.raises(UserError, match=r"train_list.txt holds zero bytes, .*: save it as UTF-8"):
        open_imagenet(root, "train")
