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
        ([os.fsdecode(b"caf\xe9"), "two\nlines", "x"], ["caf?", "two lines", "x"]),
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
