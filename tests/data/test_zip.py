"""Zip files with a map: the same bytes as zipfile reads, from any process, and messages for damaged ones."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlevit.data.sources import open_imagenet
from paddlevit.data.ziparchive import ZipArchive
from paddlevit.errors import MissingFileError, UserError

CONTENT = {f"n{i % 3}/{i} x.jpg": random.Random(i).randbytes(i * 7) * 3 for i in range(40)}


def write_zip(path, content, *, method=zipfile.ZIP_STORED, before=b"", **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.comment = b"a comment"
    path.write_bytes(before + file.getvalue())
    return path


def read_all(path):
    archive = ZipArchive(path)
    return {name.decode(): archive.read(number, name.decode()) for name, number in archive.names.items()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n" * 100])
def test_reads_what_zipfile_wrote(method, before, tmp_path):
    path = write_zip(tmp_path / "a.zip", {"n0/": b"", **CONTENT}, method=method, before=before)
    assert read_all(path) == CONTENT


def test_reads_members_with_long_fields(tmp_path, monkeypatch):
    """What lies behind 4 GiB has its place in an extra field; a lower limit makes zipfile write that for all."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5)
    path = write_zip(tmp_path / "a.zip", CONTENT)
    assert b"PK\6\6" in path.read_bytes()
    assert read_all(path) == CONTENT


def test_a_member_behind_4_gib(tmp_path):
    path = tmp_path / "a.zip"
    with open(path, "wb") as file:
        file.truncate(5 << 30)  # takes no space on the disk
        file.seek(5 << 30)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("far.jpg", b"far away")
    assert read_all(path) == {"far.jpg": b"far away"}


def layout(root, split="train", *, names=None, top="", **options):
    names = sorted(CONTENT) if names is None else names
    write_zip(root / f"{split}.zip", {top + name: data for name, data in CONTENT.items()}, **options)
    (root / f"{split}_map.txt").write_text("".join(f"{name}\t{name[1]}\n" for name in names))
    return root


@pytest.mark.parametrize("top", ["", "train/"])
def test_source(tmp_path, top):
    layout(tmp_path, top=top)
    with zipfile.ZipFile(tmp_path / "train.zip", "a") as archive:
        archive.writestr("__MACOSX/train/n0/._a.jpg", b"of macOS")
    source = open_imagenet(tmp_path, "train")
    assert source.class_names == ["n0", "n1", "n2"]
    for i, name in enumerate(sorted(CONTENT)):
        assert source.read(i) == CONTENT[name]
        assert source.label(i) == int(name[1])
        assert source.name(i) == f"{tmp_path}/train.zip/{name}"


def test_forked_processes_read_at_once(tmp_path):
    source = open_imagenet(layout(tmp_path), "train")
    source.read(3)
    children = [multiprocessing.get_context("fork").Process(target=_read_often, args=(source,)) for _ in range(3)]
    for child in children:
        child.start()
    _read_often(source)
    for child in children:
        child.join()
        assert child.exitcode == 0


def _read_often(source):
    for i in [*range(len(source))] * 50:
        assert source.read(i) == CONTENT[sorted(CONTENT)[i]]


def test_a_mapped_member_is_missing(tmp_path):
    layout(tmp_path, names=[*CONTENT, "n1/nothing.jpg"])
    with pytest.raises(UserError, match=r"train_map.txt, line 41: 'n1/nothing.jpg' is not in .*train.zip"):
        open_imagenet(tmp_path, "train")


@pytest.mark.parametrize(("in_zip", "in_map"), [("café.jpg", "cafe\u0301.jpg"), ("n/cafe\u0301.jpg", "n\\café.jpg")])
def test_names_in_another_form(tmp_path, in_zip, in_map):
    write_zip(tmp_path / "train.zip", {in_zip: b"abc"})
    (tmp_path / "train_map.txt").write_text(f"{in_map}\t0\n", encoding="utf-8")
    assert open_imagenet(tmp_path, "train").read(0) == b"abc"


def test_names_whose_writer_did_not_say_that_they_are_utf8(tmp_path):
    data = write_zip(tmp_path / "train.zip", {"café.jpg": b"abc"}).read_bytes()
    flag = data.rindex(b"PK\1\2") + 9
    (tmp_path / "train.zip").write_bytes(data[:flag] + b"\0" + data[flag + 1 :])
    (tmp_path / "train_map.txt").write_text("café.jpg\t0\n", encoding="utf-8")
    assert open_imagenet(tmp_path, "train").read(0) == b"abc"


def test_a_source_keeps_little_of_a_member(tmp_path):
    write_zip(tmp_path / "train.zip", {f"{i}.jpg": b"" for i in range(5000)})
    (tmp_path / "train_map.txt").write_text("".join(f"{i}.jpg\t0\n" for i in range(5000)))
    archive = open_imagenet(tmp_path, "train")._archive
    kept = sum(value.nbytes for value in vars(archive).values() if isinstance(value, np.ndarray))
    assert kept == 17 * 5000 and not archive.names


def test_missing_files(tmp_path):
    layout(tmp_path)
    with pytest.raises(MissingFileError, match="val_map.txt is missing, though"):
        open_imagenet(tmp_path, "val")
    (tmp_path / "train.zip").unlink()
    with pytest.raises(MissingFileError, match="there is no zip file .*train.zip"):
        open_imagenet(tmp_path, "train")


@pytest.mark.parametrize("keep", [0, 10, -40, -200])
def test_a_zip_that_was_cut_off(tmp_path, keep):
    layout(tmp_path)
    path = tmp_path / "train.zip"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="train.zip is not a complete zip file"):
        open_imagenet(tmp_path, "train")


def test_other_compression_and_encryption(tmp_path):
    layout(tmp_path, method=zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match="compressed by method 14"):
        open_imagenet(tmp_path, "train")
    data = bytearray(layout(tmp_path).joinpath("train.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "train.zip").write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        open_imagenet(tmp_path, "train")


def test_a_damaged_member_is_named(tmp_path):
    source = open_imagenet(layout(tmp_path, method=zipfile.ZIP_DEFLATED), "train")
    path = tmp_path / "train.zip"
    data = path.read_bytes()
    path.write_bytes(b"\xff" * (len(data) // 2) + data[len(data) // 2 :])
    with pytest.raises(UserError, match=r"train.zip/n\d/\d+ x.jpg is damaged"):
        for i in range(len(source)):
            source.read(i)
    path.write_bytes(data[:100])
    with pytest.raises(UserError, match="is damaged"):
        source.read(len(source) - 1)


def with_stored_size(path, change):
    """Change the size, as stored, that the directory gives for its first member."""
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2") + 20
    size = int.from_bytes(data[place : place + 4], "little")
    data[place : place + 4] = change(size).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def test_a_directory_that_is_wrong(tmp_path):
    content = {"a.jpg": b"abc" * 100}
    with pytest.raises(UserError, match="a member extends past its end"):
        ZipArchive(with_stored_size(write_zip(tmp_path / "a.zip", content), lambda size: 1 << 30))
    shorter = with_stored_size(
        write_zip(tmp_path / "b.zip", content, method=zipfile.ZIP_DEFLATED), lambda size: size - 2
    )
    with pytest.raises(UserError, match="a.jpg is damaged: it ends too early"):
        read_all(shorter)


def test_a_zip_that_is_cut_off_while_it_is_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"abc" * 100})
    archive = ZipArchive(path)
    number = archive.names[b"a.jpg"]
    assert archive.read(number, "a.jpg") == b"abc" * 100
    os.truncate(path, 200)
    with pytest.raises(UserError, match="a.jpg is damaged: .* not all of it"):
        archive.read(number, "a.jpg")


@settings(max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_zip_files_are_read_or_named(changes, tmp_path_factory):
    content = {f"{i}.jpg": bytes([i]) * 9 for i in range(4)}
    path = write_zip(tmp_path_factory.getbasetemp() / "a.zip", content, method=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[-1 - place % len(data)] = value
    path.write_bytes(data)
    try:
        archive = ZipArchive(path)
        for name, number in archive.names.items():
            archive.read(number, f"{path} {name}")
    except UserError as error:
        assert str(path) in str(error)
