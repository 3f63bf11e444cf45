"""Files of a few bytes that make a reader run code, fill the memory or never end; and objects that do no harm."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import json
import pathlib
import pickle
import struct
import time
import tracemalloc
import zipfile
from datetime import datetime

import numpy as np
import pytest

from paddlevit.errors import UserError
from paddlevit.safe_pickle import Placeholder, Unpickler
from paddlevit.weights import WeightsError, read_state_dict

PROTO = b"\x80\x02"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(full):
    module, _, last = full.rpartition(".")
    return b"c" + f"{module}\n{last}\n".encode()


def laughs(first=b")", levels=60):
    """A tuple that holds itself twice, `levels` deep: to hash, compare or print it takes 2 ** levels steps."""
    return first + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))


def nested_dicts(key, levels=60):
    """A dict that holds the same dict under two keys, `levels` deep."""
    level = b"q%c0}(" + text(key) + b"h%c" + text("net") + b"h%cu"
    return b"}" + b"".join(level % (i, i, i) for i in range(levels))


F4, STORAGE, ZERO, W = (text(value) for value in ("f4", "storage", "0", "w"))


def array(shape, code=F4, data=b"C\x04\0\0\0\0"):
    """A NumPy array of one element, said to be of another shape or dtype."""
    start = name("numpy.core.multiarray._reconstruct") + name("numpy.ndarray") + b"K\0\x85C\x01b\x87R(K\x01" + shape
    return start + name("numpy.dtype") + code + b"\x89\x88\x87R\x89" + data + b"tb"


def tensor(kind=STORAGE, key=ZERO, size=b"K\x04", shape=b"K\x04\x85", strides=b"K\x01\x85"):
    storage = b"(" + kind + name("torch.FloatStorage") + key + text("cpu") + size + b"tQ"
    return name("torch._utils._rebuild_tensor_v2") + b"(" + storage + b"K\0" + shape + strides + b"\x89}tR"


def state(value, key=W):
    return PROTO + b"}" + key + value + b"s."


def torch_zip(pickled, storages=(("0", b"\0" * 16),)):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for key, data in storages:
            archive.writestr(f"a/data/{key}", data)
    return file.getvalue()


def legacy(objects, keys):
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    storage = struct.pack("<q", 4) + b"\0" * 16
    return b"".join(pickle.dumps(part, 2) for part in head) + objects + PROTO + keys + b"." + storage


def safetensors(entries, data=b"\0" * 16):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HUGE = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
HOSTILE = {
    "bytearray of 4 GB": PROTO + b"\x96" + struct.pack("<Q", 1 << 32) + b".",
    "bytes of 4 EB": PROTO + b"\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "text of 4 EB": PROTO + b"\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "string of -5 bytes": PROTO + b"T" + struct.pack("<i", -5) + b".",
    "number of 2 GB": PROTO + b"\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "frame of 4 EB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
    "frame of more than there is": b"\x80\x04\x95" + struct.pack("<Q", 1 << 32) + b"}.",
    "huge memo index": PROTO + b"}r\xff\xff\xff\xff0j\xfe\xff\xff\xff.",
    "tuples as key": PROTO + b"}" + laughs() + b"K\x01s.",
    "tuples as keys": PROTO + b"}(" + laughs() + b"K\x01u.",
    "tuples in a set": PROTO + b"\x8f(" + laughs() + b"\x90.",
    "tuples in a frozenset": PROTO + b"(" + laughs() + b"\x91.",
    "tuples as items of an OrderedDict": PROTO + name("collections.OrderedDict") + b"]" + laughs() + b"a\x85R.",
    "tuples as a weight": state(laughs()),
    "tuples as the file": PROTO + laughs() + b".",
    "tuples as module's name": PROTO + laughs() + text("x") + b"\x93.",
    "tuples as dtype": state(array(b"K\x01\x85", code=laughs())),
    "tuples as shape": state(array(laughs())),
    "tuples as encoding": PROTO + name("_codecs.encode") + text("x") + laughs() + b"\x86R.",
    "tuples as state of an array": state(array(b"K\x01\x85") + laughs() + b"b"),
    "dicts in dicts": PROTO + nested_dicts("model") + b".",
    "a dict in itself": PROTO + b"}q\0" + text("model") + b"h\0s.",
    "deep tuples": PROTO + b")" + b"\x85" * 30_000 + b".",
    "deep tuples as key": PROTO + b"})" + b"\x85" * 30_000 + b"Ns.",
    "deep lists": PROTO + b"]" * 30_000 + b"a" * 29_999 + b".",
    "marks": PROTO + b"(" * 30_000 + b".",
    "state of a builder": PROTO + name("collections.OrderedDict") + b"N}" + text("__code__") + b"Ns\x86b.",
    "state of a class": PROTO + name("numpy.dtype") + b"N}" + text("set_state") + b"Ns\x86b.",
    "state of a list": PROTO + b"]N}" + text("x") + b"Ns\x86b.",
    "state of a number": PROTO + b"K\x01}" + text("x") + b"Nsb.",
    "call of a number": PROTO + b"K\x01)R.",
    "call of a call": PROTO + name("torch._tensor._rebuild_from_type_v2") + b")R.",
    "getattr of a name": PROTO + name("builtins.getattr") + text("os") + text("system") + b"\x86R.",
    "getattr of a builder": PROTO + name("builtins.getattr") + name("numpy.dtype") + text("mro") + b"\x86R.",
    "extension registry": PROTO + b"\x82\x01.",
    "instance by INST": PROTO + b"(iargparse\nNamespace\n.",
    "instance by OBJ": PROTO + b"(" + name("argparse.Namespace") + b"o.",
    "buffer outside": b"\x80\x05\x97.",
    "negative item": PROTO + b"]K\x01aJ\xff\xff\xff\xffK\x02s.",
    "array larger than its bytes": state(array(HUGE + b"\x85")),
    "array of a repeated tuple": state(array(HUGE + b"(Nt\x86")),
    "array of too many dimensions": state(array(b"(" + b"K\x01" * 1000 + b"t")),
    "array of no bytes": state(array(b"K\x01\x85", data=b"]K\0a")),
    "array without state": state(name("numpy.core.multiarray._reconstruct") + b")R"),
    "array of text": state(array(HUGE + b"\x85", data=text("x" * 600))),
    "tensor outside": torch_zip(state(tensor(size=b"K\x04", shape=b"K\x05\x85"))),
    "tensor of strides outside": torch_zip(state(tensor(strides=b"K\x02\x85"))),
    "tensor of negative strides": torch_zip(state(tensor(strides=b"J\xff\xff\xff\xff\x85"))),
    "tensor of too few strides": torch_zip(state(tensor(shape=b"K\x02K\x02\x86"))),
    "tensor of a repeated tuple": torch_zip(state(tensor(shape=HUGE + b"(Nt\x86"))),
    "tensor that repeats one value": torch_zip(state(tensor(shape=HUGE + b"\x85", strides=b"K\0\x85"))),
    "storage of another kind": torch_zip(state(tensor(kind=laughs()))),
    "storage with a strange key": torch_zip(state(tensor(key=laughs()))),
    "storage of strange size": torch_zip(state(tensor(size=laughs()))),
    "storage larger than its entry": torch_zip(state(tensor(size=HUGE))),
    "storage of two sizes": torch_zip(
        PROTO + b"}(" + W + tensor() + ZERO + tensor(size=b"K\x03", shape=b"K\x03\x85") + b"u."),
    "storage of two types": torch_zip(
        PROTO + b"}(" + W + tensor() + ZERO + tensor().replace(b"FloatStorage", b"IntStorage") + b"u."),
    "members of a list": PROTO + b"](K\1\x90.",
    "storage that is absent": torch_zip(state(tensor(key=text("1")))),
    "old file with strange keys": legacy(state(tensor()), b"]" + laughs() + b"a"),
    "old file with another key": legacy(state(tensor()), b"]" + text("1") + b"a"),
    "safetensors, header of 100 MB": struct.pack("<Q", 100_000_000) + b"{",
    "safetensors, deep header": struct.pack("<Q", 30_005) + b'{"a":' + b"[" * 30_000,
    "safetensors, negative offsets": safetensors({"w": {**ONE, "data_offsets": [-16, 0]}}),
    "safetensors, huge shape": safetensors({"w": {**ONE, "shape": [1 << 60, 16]}}),
    "safetensors, strange shape": safetensors({"w": {**ONE, "shape": [[1]]}}),
    "safetensors, dtype": safetensors({"w": {**ONE, "dtype": []}}),
    "one array under many names": PROTO + b"}(" + W + array(b"M\0\x40\x85", data=b"B\0\0\1\0" + b"\0" * 65536) + b"q\0"
    + b"".join(text(str(i)) + b"h\0" for i in range(9000)) + b"u.",
    "one tensor under many names": safetensors(
        {str(i): {**ONE, "shape": [1 << 18], "data_offsets": [0, 1 << 20]} for i in range(1000)}, b"\0" * (1 << 20)),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_an_error_in_no_time_and_no_memory(tmp_path, what):
    path = tmp_path / "w.pdparams"
    path.write_bytes(HOSTILE[what])
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(WeightsError) as caught:
            read_state_dict(path)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert seconds < 1
    assert peak < 100e6


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_of_nothing_but_prefixes_take_no_time(tmp_path, prefix):
    path = tmp_path / "w.pdparams"
    path.write_bytes(state(array(b"K\x01\x85"), key=text(prefix * 50)))
    start = time.process_time()
    read_state_dict(path)
    assert time.process_time() - start < 1


class Palette:
    """A class inside of another: protocols 2 and 3 find it by getattr, as early Python 3.11 finds an Enum's members."""

    class Colour(enum.Enum):
        RED = 1


class Options(argparse.Namespace):
    """A class that only the training program has."""


class Settings(dict):
    """As a configuration library's: a dict with attributes, and items of its own."""


class Slots:
    """State in slots, and made with keywords."""

    __slots__ = ("x",)

    def __init__(self, x=0):
        self.x = x

    def __getnewargs_ex__(self):
        return (), {}


def settings():
    value = Settings(depth=12)
    value.frozen = True
    return value


HARMLESS = {
    "argparse": argparse.Namespace(lr=0.1),
    "a class of the program's": Options(path=pathlib.Path("a"), when=datetime(2024, 1, 1)),
    "enum": [Palette.Colour.RED, {Palette.Colour.RED: 1}],
    "counter": collections.Counter([30, 30, 60]),
    "deque": collections.deque([1, 2], maxlen=5),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "settings": settings(),
    "slots": [Slots(), Slots(2)],
    "numbers": (1 << 70, 1e300, -1, 2 + 3j, True, None),
    "containers": [{1, 2}, frozenset("ab"), bytearray(b"x" * 900), "y" * 900, range(3), slice(1, 2)],
    "keys": {(1, 2): 3, frozenset("a"): {(4, 5)}, np.int64(3): 4},
    "numpy": [
        np.float64(1.5),
        np.arange(3),
        np.array([None]),
        np.array(["a"]),
        np.dtype("f4"),
        np.random.RandomState(0),
    ],
    "functions": [len, np.mean, WeightsError],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", HARMLESS)
def test_what_no_weight_needs_refuses_no_file(tmp_path, what, protocol):
    path = tmp_path / "w.pdparams"
    content = pickle.dumps({"model": {"w": np.ones(3, "f4")}, "args": {"x": HARMLESS[what]}}, protocol)
    if what == "enum" and protocol < 4:  # and, in Python 3.11.2, in all protocols
        assert b"getattr" in content
    path.write_bytes(content)
    assert list(read_state_dict(path)["w"]) == [1, 1, 1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_objects_come_out_as_they_went_in(protocol):
    shared = ["é", b"", b"x" * 300]
    content = {
        "numbers": [0, -1, 255, 65536, -(1 << 40), 1 << 700, 0.5, True, False, None],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (shared, shared)],
        b"bytes": shared,
        7: {"empty": {}, 1.5: [], None: {True: "y" * 400}},
    }
    if protocol >= 4:  # below, sets are made by a call, of which nothing is kept
        content["sets"] = [set(), {1, "a"}, frozenset({b"b", None}), {3}]
    loaded = Unpickler(pickle.dumps(content, protocol)).load()
    assert loaded == content
    assert loaded["tuples"][5][0] is loaded[b"bytes"]


def test_torchs_dtypes_and_unknown_storages_refuse_no_file(tmp_path):
    """What torch writes for torch.bfloat16, a device, a quantised tensor, and a scheduler's Counter."""
    quantised = tensor(key=text("1")).replace(b"FloatStorage", b"QInt8Storage")
    args = b"](" + name("torch.bfloat16") + name("torch.device") + text("cuda") + b"\x85R" + quantised + b"e"
    path = tmp_path / "w.pth"
    path.write_bytes(torch_zip(PROTO + b"}(" + text("args") + args + text("model") + state(tensor())[2:-1] + b"u."))
    assert read_state_dict(path)["w"].shape == (4,)
    path.write_bytes(torch_zip(state(quantised)))
    with pytest.raises(WeightsError, match=r"w \(a tensor in torch.QInt8Storage\)"):
        read_state_dict(path)


def test_a_weight_of_an_unknown_class_is_named(tmp_path):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"w": np.ones(3), "v": Options()}))
    with pytest.raises(WeightsError, match=rf"v \({__name__}.Options\)"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Options()))
    with pytest.raises(WeightsError, match=rf"holds a {__name__}.Options, not a dict of weights"):
        read_state_dict(path)


def test_nothing_real_comes_out_of_a_pickle():
    """Not even of names that are known: no class or function of the process that reads, and no attribute set."""
    for full in ("collections.OrderedDict", "builtins.dict", "argparse.Namespace", "numpy.ndarray", "os.path.join"):
        try:
            value = Unpickler(PROTO + name(full) + b".").load()
        except pickle.UnpicklingError:
            continue
        assert isinstance(value, Placeholder) or value.__module__ == "paddlevit.safe_pickle"
    with pytest.raises(pickle.UnpicklingError, match="attributes of function"):
        Unpickler(PROTO + name("collections.OrderedDict") + b"N}" + text("x") + b"Ns\x86b.").load()


def test_a_user_can_mend_every_such_mistake():
    assert issubclass(WeightsError, UserError)
