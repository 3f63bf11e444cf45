"""List files: what is read from them, and what is said about lines that cannot be used."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlevit.data.index import Index, index_of, read_list
from paddlevit.errors import MissingFileError, UserError

SPACE = st.text(" \t\v\f", min_size=1, max_size=3)
WORD = st.text(st.characters(blacklist_categories=("Cs", "Z", "Cc")), min_size=1, max_size=8)
PATHS = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


def rows_of(index: Index) -> list:
    return [(os.fsdecode(index.path(i)), int(index.labels[i])) for i in range(len(index))]


def write(path, text) -> object:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


@given(rows=st.lists(st.tuples(PATHS, st.integers(0, 999_999), SPACE, SPACE, st.integers(0, 2)), min_size=1))
def test_reads_what_was_written(rows, tmp_path_factory):
    lines = [f"{before}{path}{between}{label}" + "\n" * (1 + blank) for path, label, between, before, blank in rows]
    index = read_list(write(tmp_path_factory.mktemp("list") / "list.txt", "".join(lines)))
    assert rows_of(index) == [(path, label) for path, label, *_ in rows]
    numbers = [1 + sum(1 + blank for *_, blank in rows[:i]) for i in range(len(rows))]
    assert [index.line(i) for i in range(len(rows))] == numbers


def test_windows_line_ends_byte_order_mark_and_no_last_line_end(tmp_path):
    index = read_list(write(tmp_path / "list.txt", b"\xef\xbb\xbfa/b c.jpg\t7\r\n\r\nd.jpg 08"))
    assert rows_of(index) == [("a/b c.jpg", 7), ("d.jpg", 8)]
    assert [index.line(0), index.line(1)] == [1, 3]


def test_paths_that_are_no_utf8_stay_as_they_are(tmp_path):
    index = read_list(write(tmp_path / "list.txt", b"\xfe\xfd.jpg 1\n"))
    assert index.path(0) == b"\xfe\xfd.jpg"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.jpg 0\nb.jpg\nc.jpg 1\n", "line 2: 'b.jpg' has no label"),
        ("a.jpg 0\n\nb.jpg one\n", "line 3: the label is 'one', allowed: whole numbers, 0 to 999999"),
        ("a.jpg 0\nb.jpg -3\n", "line 2: the label is '-3'"),
        ("a.jpg 1.5\n", "line 1: the label is '1.5'"),
        ("a.jpg 1000000\n", "line 1: the label is '1000000'"),
        ("a.jpg ٣\n", "line 1: the label is '٣'"),
        ("", "lists no images"),
        (" \n\t\n", "lists no images"),
    ],
)
def test_lines_that_cannot_be_used(text, said, tmp_path):
    file = write(tmp_path / "train_list.txt", text)
    with pytest.raises(UserError) as caught:
        read_list(file)
    assert said in str(caught.value) and str(file) in str(caught.value)


def test_no_list_file(tmp_path):
    with pytest.raises(MissingFileError, match="there is no file .*train_list.txt"):
        read_list(tmp_path / "train_list.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path)


def test_a_changed_list_is_read_again(tmp_path):
    file = write(tmp_path / "list.txt", "a.jpg 0\n")
    assert len(read_list(file)) == 1
    assert len(read_list(write(file, "a.jpg 0\nb.jpg 1\n"))) == 2


@given(rows=st.lists(st.tuples(PATHS.map(str.encode), st.integers(0, 99))))
def test_index_of_paths(rows):
    index = index_of([path for path, _ in rows], [label for _, label in rows])
    assert [(index.path(i), int(index.labels[i])) for i in range(len(index))] == rows


def names_of(lines):
    with tempfile.TemporaryDirectory() as folder:
        return read_list(write(Path(folder) / "list.txt", "\n".join(lines))).class_names()


FOLDER = st.sampled_from(["a", "b", "ab", "ba", "a b", "abc"])


@given(rows=st.lists(st.tuples(st.sampled_from(["", "train/", "x/y/", "/"]), FOLDER, st.integers(0, 3)), min_size=1))
def test_folders_name_the_labels_where_they_can(rows):
    names = names_of([f"{above}{folder}/1.jpg {label}" for above, folder, label in rows])
    by_label = {}
    for _, folder, label in rows:
        by_label.setdefault(label, set()).add(folder)
    own = [by_label.get(label, {str(label)}) for label in range(max(by_label) + 1)]
    unique = all(len(name) == 1 for name in own) and len(set.union(*own)) == len(own)
    assert names == ([name.pop() for name in own] if unique else None)


@pytest.mark.parametrize("rows", [["img\\a\\1.jpg 0", "img\\b\\2.jpg 1"], ["img//a//1.jpg 0", "./b//2.jpg 1"]])
def test_other_ways_to_write_a_folder(rows):
    assert names_of(rows) == ["a", "b"]


@pytest.mark.parametrize("folders", [["ab", "ba"], ["a", "b"], ["ab", "abc"], ["abc", "ab"]])
def test_a_label_with_two_folders_has_no_name(folders):
    assert names_of([f"train/{folder}/1.jpg 0" for folder in folders]) is None


def test_files_in_no_folder_name_nothing():
    assert names_of(["1.jpg 0", "2.jpg 1"]) is names_of(["a/1.jpg 0", "2.jpg 0"]) is None
