"""Readers of weights files: every kind of file gives the arrays that were put in; every damage is a clear error.

The `.pth` files in tests/weights/files were made once with torch 2.13, `torch.save(obj, path)`, and with
`_use_new_zipfile_serialization=False` for the `legacy` ones. zip.pth and legacy.pth hold the OrderedDict of `EXPECTED`,
with real views (`.t()`, slices, `.expand`, halves of one storage) and a Linear's Parameters; training.pth holds what
the official training scripts save: BatchNorm1d(2).state_dict() under `model` with `module.` before each name, beside
model_ema, optimizer, epoch, an argparse.Namespace with a Path and a torch.device, a yacs CfgNode, a defaultdict, a
NumPy scalar.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors.numpy
import safetensors.paddle

from paddlevit.errors import MissingFileError
from paddlevit.weights import WeightsError, read_state_dict, readers

DATA = Path(__file__).parent / "files"
EXPECTED = {
    "float32": np.arange(6, dtype="f4").reshape(2, 3),
    "float64": np.arange(6, dtype="f8").reshape(2, 3) / 3,
    "float16": (np.arange(6) / 4).astype("f2"),
    "bfloat16": (np.arange(6) / 4).astype("f4"),
    "int64": np.arange(5),
    "bool": np.array([True, False]),
    "scalar": np.array(7),
    "transposed": np.arange(12, dtype="f4").reshape(3, 4).T,
    "slice": np.arange(48, dtype="f4").reshape(6, 8)[1:5:2, 2:7:3],
    "expanded": np.array([[1, 1, 1], [2, 2, 2]], "f4"),
    "empty": np.zeros((0, 3), "f4"),
    "linear.weight": np.arange(12, dtype="f4").reshape(3, 4),
    "linear.bias": np.arange(3, dtype="f4"),
    "shared_a": np.array([0, 1], "f4"),
    "shared_b": np.array([2, 3], "f4"),
}


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
        assert actual[name].shape == array.shape, name
        assert actual[name].flags.writeable, name


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    # Larger than a pickle's frame, so that it stands outside of it and is left in the file.
    return {
        "big.weight": rng.standard_normal((100, 300)).astype("f4"),
        "half": rng.standard_normal(5).astype("f2"),
        "double": rng.standard_normal((2, 2)),
        "fortran": np.asfortranarray(rng.standard_normal((40, 50)).astype("f4")),
        "axes": rng.standard_normal((3, 4, 5)).astype("f4").transpose(1, 0, 2),
        "big_endian": np.arange(3).astype(">f4"),
        "empty": np.zeros((0, 2), "f4"),
        "count": np.array(3),
    }


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_torch_files(name):
    assert_same(read_state_dict(DATA / name), EXPECTED)


@pytest.mark.parametrize("name", ["training.pth", "training_legacy.pth"])
def test_torch_training_files_with_namespaces_and_configurations(name):
    actual = read_state_dict(DATA / name)
    assert list(actual) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    np.testing.assert_array_equal(actual["running_var"], [1, 1])


def test_big_endian_torch_file(tmp_path):
    """A zip file as a big-endian machine would write it: the same entries, data swapped, byteorder 'big'."""
    with zipfile.ZipFile(DATA / "zip.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("data/0"):
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else data)
    np.testing.assert_array_equal(read_state_dict(tmp_path / "big.pth")["float32"], EXPECTED["float32"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays(tmp_path, state, protocol):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(state, protocol))
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in state.items()}
    assert_same(read_state_dict(path), native)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_of_paddle_save(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Linear(30, 70), paddle.nn.BatchNorm1D(70))
    expected = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    paddle.save(layer.state_dict(), str(tmp_path / "flat.pdparams"), protocol=protocol)
    assert b"StructuredToParameterName@@" in (tmp_path / "flat.pdparams").read_bytes()
    assert_same(read_state_dict(tmp_path / "flat.pdparams"), expected)
    training = {"epoch": 3, "model_ema": {}, "model": layer.state_dict(), "optimizer": {"beta": layer[0].weight}}
    paddle.save(training, str(tmp_path / "nested.pdparams"), protocol=protocol)
    assert_same(read_state_dict(tmp_path / "nested.pdparams"), expected)


def test_bfloat16_of_paddle_save_and_safetensors(tmp_path):
    values = np.array([1.0, -0.5, 3.140625, 2.0**-130], "f4")
    tensor = paddle.to_tensor(values).astype("bfloat16")
    paddle.save({"w": tensor}, str(tmp_path / "w.pdparams"))
    safetensors.paddle.save_file({"a": tensor, "w": tensor}, str(tmp_path / "w.safetensors"))
    for name in ("w.pdparams", "w.safetensors"):
        actual = read_state_dict(tmp_path / name)["w"]
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, tensor.astype("float32").numpy())


def test_offsets_over_four_gigabytes(tmp_path):
    """A sparse file: 5 GB of zeros in one array, then another; only the second is read."""
    gap = 5 * 2**30
    pieces = pickle.dumps({"gap": np.full(1 << 14, 7, "f4"), "w": np.arange(5000, dtype="f4")}, 4)
    data = np.full(1 << 14, 7, "f4").tobytes()
    at = pieces.index(data)
    head = pieces[:at].replace(struct.pack("<BI", ord("B"), len(data)), struct.pack("<BQ", 0x8E, gap))
    assert head[-9:-8] == b"\x8e"
    head = head.replace(b"M\x00@\x85", b"\x8a\x05" + (gap // 4).to_bytes(5, "little") + b"\x85")
    path = tmp_path / "huge.pdparams"
    with open(path, "wb") as file:
        file.write(head)
        file.seek(gap, 1)
        file.write(pieces[at + len(data) :])
    lazy, _ = readers._read(str(path))
    assert lazy["gap"].shape == (gap // 4,)
    np.testing.assert_array_equal(lazy["w"].read(), np.arange(5000, dtype="f4"))


def test_safetensors(tmp_path, state):
    del state["big_endian"]
    state = {name: np.ascontiguousarray(array) for name, array in state.items() if array.shape}
    safetensors.numpy.save_file(state, tmp_path / "w.safetensors")
    actual = read_state_dict(tmp_path / "w.safetensors")
    assert_same({name: actual[name] for name in state}, state)


def test_a_safetensors_header_may_have_any_length(tmp_path):
    """One length in 256 (in 32 of those that the library writes) begins with the byte that a pickle begins with."""
    path = tmp_path / "w.bin"
    header = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    first = set()
    for length in range(len(header), len(header) + 256):
        content = struct.pack("<Q", length) + header.ljust(length) + np.arange(3, dtype="<f4").tobytes()
        first.add(content[:1])
        path.write_bytes(content)
        assert_same(read_state_dict(path), {"w": np.arange(3, dtype="f4")})
        path.write_bytes(content[:-1])
        with pytest.raises(WeightsError, match="not a complete .safetensors file"):
            read_state_dict(path)
    assert b"\x80" in first


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_ema", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix):
    state = {prefix + "a": np.ones(2, "f4"), prefix + "module.b": np.zeros(1, "f4")}
    content = {wrapper: state, "epoch": 7} if wrapper else state
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content))
    assert list(read_state_dict(tmp_path / "w.pdparams")) == ["a", "module.b"]


def test_model_comes_before_its_average(tmp_path):
    content = {"model_ema": {"w": np.zeros(1)}, "model": {"w": np.ones(1)}}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content))
    assert read_state_dict(tmp_path / "w.pdparams")["w"] == 1


def test_the_state_of_a_checkpoint_means_the_weights_beside_it(tmp_path):
    paddle.save({"w": paddle.ones([2])}, str(tmp_path / "epoch_001.pdparams"))
    (tmp_path / "epoch_001.pdstate").write_bytes(b"PK")
    assert_same(read_state_dict(tmp_path / "epoch_001.pdstate"), {"w": np.ones(2, "f4")})


def test_suffix_may_be_left_out_and_need_not_be_right(tmp_path):
    (tmp_path / "w.pdparams").write_bytes((DATA / "zip.pth").read_bytes())
    assert_same(read_state_dict(str(tmp_path / "w")), EXPECTED)


def test_python_2_pickles(tmp_path):
    """Their strings have opcodes of their own; so have the arrays' bytes."""
    small = b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    small += (
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    small += b"\x89U\x08" + np.array([1, -2], "<f4").tobytes() + b"tbs."
    assert [opcode.name for opcode, _, _ in pickletools.genops(small)][-1] == "STOP"
    (tmp_path / "w.pdparams").write_bytes(small)
    assert_same(read_state_dict(tmp_path / "w.pdparams"), {"a": np.array([1, -2], "f4")})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Google Drive - Virus scan", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (pickle.dumps([1, 2]), "a list, not a dict"),
        (pickle.dumps({}), "no entries"),
        (pickle.dumps({"model": {}, "epoch": 1}), "no entries"),
        (pickle.dumps({"epoch": 1, "w": np.ones(1)}), "epoch (int)"),
        (pickle.dumps({"w": np.array([None])}), "dtype"),
        (pickle.dumps({("a", "b"): 1}), "tuple"),
        (pickle.dumps({"w": np.ones(1)}, 0), "begins with"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_hold_no_weights(tmp_path, content, said):
    path = tmp_path / "w.pdparams"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_zip_that_torch_did_not_write(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match="not one that torch.save wrote"):
        read_state_dict(tmp_path / "a.pth")


def test_a_compressed_zip_is_refused(tmp_path):
    target = zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(DATA / "zip.pth") as old, target as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(WeightsError, match="compressed"):
        read_state_dict(tmp_path / "a.pth")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(MissingFileError, match="nothing"):
        read_state_dict(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="folder"):
        read_state_dict(tmp_path)


def truncatable(tmp_path):
    state = {"a": np.arange(3000, dtype="f4"), "b": np.arange(12, dtype="f4")}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(state, 4))
    (tmp_path / "w2.pdparams").write_bytes(pickle.dumps(state, 2))
    safetensors.numpy.save_file(state, tmp_path / "w.safetensors")
    return [
        DATA / "zip.pth",
        DATA / "legacy.pth",
        *(tmp_path / n for n in ("w.pdparams", "w2.pdparams", "w.safetensors")),
    ]


def test_every_truncation_is_an_error_that_names_the_file(tmp_path):
    for path in truncatable(tmp_path):
        data = path.read_bytes()
        cut = tmp_path / f"cut-{path.name}"
        for length in {*range(1, len(data), max(1, len(data) // 150)), len(data) - 1}:
            cut.write_bytes(data[:length])
            with pytest.raises(WeightsError) as caught:
                read_state_dict(cut)
            assert str(cut) in str(caught.value)


def test_truncations_by_a_byte_and_shapes_that_lie(tmp_path):
    for path in truncatable(tmp_path):
        cut = tmp_path / f"cut-{path.name}"
        cut.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(WeightsError):
            read_state_dict(cut)
    data = (tmp_path / "w.pdparams").read_bytes()
    (tmp_path / "cut").write_bytes(data.replace(b"M\xb8\x0b\x85", b"M\xb9\x0b\x85"))  # the shape (3000,) made (3001,)
    with pytest.raises(WeightsError, match="3001"):
        read_state_dict(tmp_path / "cut")


def legacy_file(path, size, byteorder="<", stored=None, view=b"N"):
    """A file as torch wrote it before 1.6, of one tensor of four elements, the second to fifth of its storage."""
    values = np.arange(10, dtype=byteorder + "f4")

    def text(string):
        return b"X" + struct.pack("<I", len(string)) + string.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("7") + text("cpu") + number(size) + view + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(1) + number(4) + b"\x85" + number(1) + b"\x85"
    content = b"\x80\x02}" + text("w") + tensor + b"\x89}tRs."
    system = {"protocol_version": 1001, "little_endian": byteorder == "<"}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    count = struct.pack(byteorder + "q", size if stored is None else stored)
    path.write_bytes(head + content + pickle.dumps(["7"], 2) + count + values.tobytes())


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_byte_orders_of_old_torch_files(tmp_path, byteorder):
    legacy_file(tmp_path / "w.pth", 10, byteorder)
    assert_same(read_state_dict(tmp_path / "w.pth"), {"w": np.arange(1, 5, dtype="f4")})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 4}, "leaves its storage of 4"),
        ({"size": 10, "stored": 9}, "storage 7 is cut short"),
        ({"size": 1000}, "storage 7 is cut short"),
        ({"size": 10, "view": b"K\1K\2\x86"}, "something outside of its arrays"),
    ],
)
def test_tensors_and_storages_that_contradict_each_other(tmp_path, options, said):
    legacy_file(tmp_path / "w.pth", **options)
    with pytest.raises(WeightsError, match=said):
        read_state_dict(tmp_path / "w.pth")


def test_a_flipped_bit_in_a_torch_zip_is_noticed(tmp_path):
    data = bytearray((DATA / "zip.pth").read_bytes())
    data[data.index(np.arange(6, dtype="<f4").tobytes()) + 10] ^= 4
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(WeightsError, match="CRC"):
        read_state_dict(tmp_path / "w.pth")


def test_order_of_names_is_the_files(tmp_path):
    state = OrderedDict((name, np.ones(1)) for name in "zyx")
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(state))
    assert list(read_state_dict(tmp_path / "w.pdparams")) == ["z", "y", "x"]
