"""Cached arrays: the same as made anew, never of another list, and never needed."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from paddlevit.data import array_cache, index
from paddlevit.data.array_cache import cache_folder, cached_arrays
from paddlevit.data.index import read_list
from paddlevit.data.layouts import open_imagenet
from paddlevit.errors import UserError


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(array_cache, "_SMALLEST", 0)
    yield tmp_path / "cache" / "paddlevit"
    index._read_list.cache_clear()


def maker(calls):
    def make():
        calls.append(1)
        return {"a": np.arange(7, dtype=np.int64), "b": np.arange(5, dtype=np.uint8), "c": np.zeros(0, np.int32)}

    return make


def opened(file, calls):
    return cached_arrays("kind", [file], maker(calls))


def test_made_once_and_mapped(tmp_path, own_folder):
    file, calls = tmp_path / "list", []
    file.write_text("x")
    for _ in range(3):
        arrays = opened(file, calls)
        expected = maker([])()
        assert arrays.keys() == expected.keys() and calls == [1]
        for name, array in expected.items():
            assert array.dtype == arrays[name].dtype and (array == arrays[name]).all()
        assert isinstance(
            arrays["a"].base.obj if isinstance(arrays["a"].base, memoryview) else arrays["a"].base, mmap.mmap
        )
        with pytest.raises(ValueError, match="read-only"):
            arrays["a"][0] = 1
    assert len(list(own_folder.iterdir())) == 1


@pytest.mark.parametrize("change", ["content", "time", "replaced"])
def test_made_anew_when_the_file_changes(tmp_path, change):
    file, calls = tmp_path / "list", []
    file.write_text("x")
    opened(file, calls)
    state = os.stat(file)
    if change == "replaced":  # the same size and time
        (tmp_path / "new").write_text("y")
        os.replace(tmp_path / "new", file)
    elif change == "content":
        file.write_text("y")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + (change == "time")))
    opened(file, calls)
    assert calls == [1, 1]
    opened(file, calls)
    assert calls == [1, 1]


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "gone"])
def test_a_damaged_cache_is_written_again(tmp_path, own_folder, damage):
    file, calls = tmp_path / "list", []
    file.write_text("x")
    opened(file, calls)
    (place,) = own_folder.iterdir()
    content = place.read_bytes()
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes({"cut": content[:-1], "empty": b"", "header": b"\0" + content[1:]}[damage])
    assert (opened(file, calls)["a"] == np.arange(7)).all() and calls == [1, 1]
    assert place.read_bytes()[1:] == content[1:] and len(list(own_folder.iterdir())) == 1


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    file, calls = tmp_path / "list", []
    file.write_text("x")
    assert (opened(file, calls)["a"] == np.arange(7)).all()
    assert (opened(file, calls)["a"] == np.arange(7)).all() and calls == [1, 1]


def test_what_is_small_is_not_kept(tmp_path, own_folder, monkeypatch):
    monkeypatch.setattr(array_cache, "_SMALLEST", 1 << 20)
    (tmp_path / "list").write_text("x")
    opened(tmp_path / "list", [])
    assert not own_folder.exists()


def test_the_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache_folder()) == "/home/me/.cache/paddlevit"


@pytest.mark.parametrize("block", [1, 17, 64, 10_000])
def test_lists_are_read_alike_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr(index, "_BLOCK", block)
    rng = np.random.default_rng(0)
    rows = [(f"train/{'x' * rng.integers(1, 30)} {i}.jpg", int(rng.integers(100))) for i in range(50)]
    text = "\n\n".join(f"{path}\t{label}" for path, label in rows)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for _ in range(2):  # parsed, then mapped
        found = read_list(tmp_path / "list.txt")
        index._read_list.cache_clear()
        assert [(found.path(i).decode(), int(found.labels[i])) for i in range(len(found))] == rows
        assert [found.line(i) for i in (0, 1, 49)] == [1, 3, 99]
    (tmp_path / "list.txt").write_text(f"{text}\nalone\n")
    with pytest.raises(UserError, match="line 100: 'alone' has no label"):
        read_list(tmp_path / "list.txt")


def test_a_zip_file_is_opened_from_the_cache(tmp_path, own_folder, monkeypatch):
    import zipfile

    for split in ("train", "val"):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for i in range(9):
                archive.writestr(f"{8 - i}.jpg", bytes([8 - i]) * 5)
        (tmp_path / f"{split}_map.txt").write_text("".join(f"{i}.jpg {i}\n" for i in range(9)))
    first = open_imagenet(tmp_path, "train")
    monkeypatch.setattr("paddlevit.data.ziparchive.ZipArchive.directory", None)
    second = open_imagenet(tmp_path, "train")
    for source in (first, second):
        assert [source.read(i) for i in range(9)] == [bytes([i]) * 5 for i in range(9)]
