"""CIFAR-10 and CIFAR-100 in the official archives' format, and files that are something else."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from paddlevit.config import get_config
from paddlevit.data import open_source
from paddlevit.data.cifar import open_cifar
from paddlevit.errors import MissingFileError, UserError

RNG = np.random.default_rng(0)


def text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING, which Python 2 wrote


def array(planes: np.ndarray) -> bytes:
    """A NumPy array as Python 2 pickled it: a rebuilt ndarray that is given shape, type and bytes."""
    count, values = planes.shape
    dtype = (
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\0K\1tR(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t"
        + text(b"b")
        + b"tR(K\1(J"
        + struct.pack("<iBi", count, ord("J"), values)
        + b"t"
        + dtype
        + b"\x89"
        + text(planes.tobytes())
        + b"tb"
    )


def python2_pickle(entries: dict) -> bytes:
    body = b"".join(
        text(key) + (array(value) if isinstance(value, np.ndarray) else items(value)) for key, value in entries.items()
    )
    return b"\x80\x02}(" + body + b"u."


def items(values: list) -> bytes:
    return b"](" + b"".join(text(v) if isinstance(v, bytes) else b"K" + bytes([v]) for v in values) + b"e"


def images(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.fixture
def cifar10():
    files = {
        f"data_batch_{i}": {b"data": images(i), b"labels": [i] * i, b"filenames": [b"x.png"] * i} for i in range(1, 6)
    }
    files["test_batch"] = {b"data": images(4), b"labels": [0, 9, 3, 1]}
    files["batches.meta"] = {b"label_names": [f"class {i}".encode() for i in range(10)]}
    return files


@pytest.fixture
def cifar100():
    return {
        "train": {b"data": images(3), b"fine_labels": [99, 0, 50], b"coarse_labels": [1, 2, 3]},
        "test": {b"data": images(2), b"fine_labels": [5, 6], b"coarse_labels": [1, 2]},
        "meta": {b"fine_label_names": [f"fine {i}".encode() for i in range(100)], b"coarse_label_names": [b"c"]},
    }


def unpacked(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in files.items():
        (folder / name).write_bytes(python2_pickle(entries))
    return folder


def packed(path, files, top):
    with tarfile.open(path, "w:gz") as tar:
        for name, entries in {**files, "readme.html": {}}.items():
            content = python2_pickle(entries)
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def expected_pixels(planes):
    """Row by row, the three planes of 32 x 32 laid behind each other."""
    return np.stack([np.stack([row.reshape(3, 32, 32)[c] for c in range(3)], axis=-1) for row in planes])


def check(source, blocks, labels, names):
    assert source.labels.tolist() == labels and source.class_names == names
    pixels = expected_pixels(np.concatenate(blocks))
    for i in range(len(source)):
        assert source.image(i).mode == "RGB"
        assert (np.asarray(source.image(i)) == pixels[i]).all()
        assert source.read(i) == pixels[i].tobytes()


@pytest.mark.parametrize("form", ["the folder", "what holds the folder", "the archive", "what holds the archive"])
def test_cifar10(form, cifar10, tmp_path):
    path = (
        unpacked(tmp_path / "cifar-10-batches-py", cifar10) if "folder" in form else tmp_path / "cifar-10-python.tar.gz"
    )
    if "archive" in form:
        packed(path, cifar10, "cifar-10-batches-py")
    path = tmp_path if "holds" in form else path
    train, val = open_cifar(path, "cifar10", split="train"), open_cifar(path, "cifar10", split="val")
    names = [f"class {i}" for i in range(10)]
    batches = [cifar10[f"data_batch_{i}"] for i in range(1, 6)]
    check(train, [b[b"data"] for b in batches], sum((b[b"labels"] for b in batches), []), names)
    check(val, [cifar10["test_batch"][b"data"]], [0, 9, 3, 1], names)
    assert train.name(14).startswith(str(tmp_path)) and train.name(14).endswith(", train, image 14")


def test_cifar100(cifar100, tmp_path):
    unpacked(tmp_path, cifar100)
    config = get_config("pit_digits", ["DATA.DATASET", "cifar100", "DATA.DATA_PATH", str(tmp_path)])
    train, val = open_source(config, "train"), open_source(config, "val")
    names = [f"fine {i}" for i in range(100)]
    check(train, [cifar100["train"][b"data"]], [99, 0, 50], names)
    check(val, [cifar100["test"][b"data"]], [5, 6], names)


@pytest.mark.parametrize("protocol", [2, 3])
def test_arrays_of_any_numpy(protocol, cifar100, tmp_path):
    """The same entries, pickled by the NumPy that is installed."""
    unpacked(tmp_path, cifar100)
    content = pickle.dumps({b"data": cifar100["test"][b"data"], b"fine_labels": [5, 6]}, protocol=protocol)
    (tmp_path / "test").write_bytes(content)
    check(
        open_cifar(tmp_path, "cifar100", split="val"),
        [cifar100["test"][b"data"]],
        [5, 6],
        [f"fine {i}" for i in range(100)],
    )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_executed(cifar100, tmp_path):
    unpacked(tmp_path, cifar100)
    (tmp_path / "test").write_bytes(pickle.dumps({b"data": Evil(tmp_path / "executed"), b"fine_labels": [0]}))
    with pytest.raises(UserError, match=r"test.*refers to _?io\.open, which is neither an array nor"):
        open_cifar(tmp_path, "cifar100", split="val")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({b"data": images(2), b"fine_labels": [5]}, "has 1 labels, but the pixels of 2 images"),
        ({b"data": images(2)[:, :100], b"fine_labels": [5, 6]}, "has 2 labels, but the pixels of 0.065"),
        ({b"data": images(1), b"fine_labels": [100]}, "a label is not a whole number from 0 to 99"),
        ({b"data": images(1), b"fine_labels": [b"x"]}, "a label is not a whole number"),
        ({b"data": [b"x"], b"fine_labels": [1]}, "does not hold an array of images"),
        ({b"data": images(1)}, "is damaged: KeyError"),
        ({b"data": images(0), b"fine_labels": []}, "has 0 labels"),
    ],
)
def test_files_that_are_something_else(entries, said, cifar100, tmp_path):
    unpacked(tmp_path, {**cifar100, "test": entries})
    with pytest.raises(UserError) as caught:
        open_cifar(tmp_path, "cifar100", split="val")
    assert said in str(caught.value) and str(tmp_path / "test") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02}("])
def test_damaged_pickles(content, cifar100, tmp_path):
    unpacked(tmp_path, cifar100)
    (tmp_path / "test").write_bytes(content)
    with pytest.raises(UserError, match="test is damaged"):
        open_cifar(tmp_path, "cifar100", split="val")


def test_missing_and_damaged_archives(cifar10, tmp_path):
    with pytest.raises(MissingFileError) as caught:
        open_cifar(tmp_path, "cifar10", split="train")
    for looked_for in ("batches.meta", "cifar-10-batches-py/batches.meta", "cifar-10-python.tar.gz"):
        assert f"{tmp_path}/{looked_for}" in str(caught.value)
    path = packed(tmp_path / "cifar-10-python.tar.gz", {"batches.meta": cifar10["batches.meta"]}, "x")
    with pytest.raises(MissingFileError, match="has no file data_batch_1"):
        open_cifar(tmp_path, "cifar10", split="train")
    packed(path, cifar10, "x")
    for damaged in (path.read_bytes()[:5000], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a complete archive"):
            open_cifar(tmp_path, "cifar10", split="train")
    unpacked(tmp_path, cifar10)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(MissingFileError, match="there is no file .*data_batch_3"):
        open_cifar(tmp_path, "cifar10", split="train")
