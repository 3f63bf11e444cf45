"""What classes are called: files of names, and ImageNet's identifiers in words."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from paddlevit.data.index import class_names_text, imagenet_names, read_class_names, readable
from paddlevit.data.sources import open_imagenet
from paddlevit.errors import UserError

MAPPING = "n02119789 kit fox, Vulpes macrotis\nn01440764 tench, Tinca tinca\n\nn03126707 crane\nbroken\n"
WORDS = ["tench, Tinca tinca", "kit fox, Vulpes macrotis", "crane"]
IDENTIFIERS = ["n01440764", "n02119789", "n03126707"]


@pytest.mark.parametrize(
    ("names", "back"),
    [
        (["cat", "blue sea", "猫"], None),
        (["a\u2028b", "c\x0bd"], None),
        (["cafe\u0301", " x ", "\n"], ["café", "x"]),
        (["\udce7\udc8c\udcab", "\ud800"], ["猫", "\\ud800"]),  # as Python has 猫 where the locale is C
        ([os.fsdecode(b"caf\xe9"), "two\nlines", "x"], ["caf\\udce9", "two lines", "x"]),
    ],
)
def test_names_come_back(tmp_path, names, back):
    file = tmp_path / "names.txt"
    file.write_text(class_names_text(names), encoding="utf-8")
    assert read_class_names(file) == (back or names)


def test_file_of_names(tmp_path):
    file = tmp_path / "names.txt"
    assert read_class_names(file) is None
    file.write_text("\n \n")
    with pytest.raises(UserError, match=r"names\.txt is empty"):
        read_class_names(file)
    file.write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"names\.txt, line 2: b'\\xff' is not UTF-8"):
        read_class_names(file)


@pytest.mark.parametrize("below", [".", "Data", "ILSVRC/Data/CLS-LOC"])
def test_identifiers_in_words(tmp_path, below):
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    root = tmp_path / below
    assert list(imagenet_names(root).items()) == list(zip(IDENTIFIERS, WORDS)), "by identifier, as labels are"
    assert readable(IDENTIFIERS, root) == WORDS
    assert readable(IDENTIFIERS[1:], root) == WORDS[1:]
    assert readable([*IDENTIFIERS, "cat"], root) == [*IDENTIFIERS, "cat"]
    assert readable(["0", "1", "2"], root) == (WORDS if below == "." else ["0", "1", "2"])
    assert readable(["0", "1"], root) == ["0", "1"]


def test_file_far_above_or_missing(tmp_path):
    """Then names are the package's, from WordNet: all different, in the order of the labels."""
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    shipped = imagenet_names(tmp_path / "a/b/c/d")
    assert readable(IDENTIFIERS, tmp_path / "a/b/c/d") == ["tench", "kit fox", "crane (lifting device)"]
    assert len(set(shipped.values())) == 1000 and list(shipped) == sorted(shipped)
    assert [list(shipped.values())[i] for i in (0, 8, 281, 999)] == ["tench", "hen", "tabby", "toilet tissue"]


@pytest.mark.parametrize("lists", [False, True])
def test_data_of_identifiers_has_words(tmp_path, lists):
    for name in IDENTIFIERS:
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(tmp_path / "train" / name / "0.png")
    if lists:
        lines = [f"train/{name}/0.png {label}\n" for label, name in enumerate(IDENTIFIERS)]
        (tmp_path / "train_list.txt").write_text("".join(lines))
    assert open_imagenet(tmp_path, "train").class_names == ["tench", "kit fox", "crane (lifting device)"]
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    assert open_imagenet(tmp_path, "train").class_names == WORDS
    (tmp_path / "class_names.txt").write_text("fish\nfox\nbird\n")
    assert open_imagenet(tmp_path, "train").class_names == ["fish", "fox", "bird"]


def folders(root, *names, split="train"):
    for name in names:
        (root / split / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(root / split / name / "0.png")
    return root


@pytest.mark.parametrize("text", ["cat\ndog\n\n cat", "caf\u00e9\ncafe\u0301", "\ufeffa\r\nb\r\na\r\n"])
def test_a_name_given_twice_is_refused(tmp_path, text):
    (tmp_path / "class_names.txt").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(UserError, match=r"class_names\.txt, line \d: '.*' is given twice, first in line 1$"):
        read_class_names(tmp_path / "class_names.txt")


def test_of_many_classes_two_may_have_one_name_but_no_folder(tmp_path):
    names = [f"class {i}" for i in range(998)]
    (tmp_path / "class_names.txt").write_text("\n".join([*names, "crane", "crane"]))
    assert len(read_class_names(tmp_path / "class_names.txt")) == 1000
    assert open_imagenet(folders(tmp_path, *names[:3]), "train").num_classes == 1000
    folders(tmp_path, "crane")
    with pytest.raises(UserError, match="train/crane: 2 classes are called as this folder is"):
        open_imagenet(tmp_path, "train")


def test_an_identifier_given_twice_is_refused_and_one_word_for_two_is_not_used(tmp_path):
    (tmp_path / "LOC_synset_mapping.txt").write_text("n02012849 crane\nn03126707 crane\nn01440764 tench\n")
    assert readable(["n02012849", "n01440764"], tmp_path) == ["crane", "tench"]
    assert readable(["n02012849", "n03126707"], tmp_path) == ["n02012849", "n03126707"]
    assert readable(["0", "1", "2"], tmp_path) == ["0", "1", "2"]
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"{MAPPING}n01440764 fish\n")
    with pytest.raises(UserError, match=r"mapping\.txt, line 6: 'n01440764' is given twice, first in line 2$"):
        imagenet_names(tmp_path)


@pytest.mark.parametrize("pair", [("caf\u00e9", "cafe\u0301"), ("a b", "a b ")])
def test_two_folders_of_one_name_are_refused(tmp_path, pair):
    with pytest.raises(UserError, match=r"train, class folder '.*': '.*' is given twice, first in class folder '"):
        open_imagenet(folders(tmp_path, *pair), "train")
