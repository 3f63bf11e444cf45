"""Files made to do harm, and files damaged at random: nothing runs, nothing crashes, nothing fills the memory."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import resource
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors.paddle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddlevit.errors import UserError
from paddlevit.weights import WeightsError, load_weights, read_state_dict

DATA = Path(__file__).parent / "files"
# The share of the suite; FUZZ_EXAMPLES=20000 runs the whole campaign (2 minutes).
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "800"))


class Payload:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(witness):
    """By the function's name, as far as every protocol writes it: protocol 2 has the module names of Python 2."""
    code = f"open({str(witness)!r}, 'w').write('ran')"
    return {
        ".system": Payload(os.system, f"touch {witness}"),
        ".eval": Payload(eval, code),
        ".exec": Payload(exec, code),
        ".getattr": Payload(getattr, "os", "system"),
        ".open": Payload(open, str(witness), "w"),
        ".Popen": Payload(subprocess.Popen, ["touch", str(witness)]),
        ".__import__": Payload(builtins.__import__, "os"),
    }


def containers(payload, path):
    """The payload as the whole file, as a value beside the weights, as a key's neighbour deep down, in a torch zip."""
    weights = {"w": np.ones(2, "f4")}
    yield path, pickle.dumps(payload)
    yield path, pickle.dumps({"model": weights, "args": payload})
    yield path, pickle.dumps({**weights, "w2": payload}, 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"w": payload}, 2))
    yield path.with_suffix(".pth"), buffer.getvalue()


@pytest.mark.parametrize("name", payloads(""))
def test_code_in_a_file_is_refused_by_name_and_does_not_run(tmp_path, name):
    witness = tmp_path / "witness"
    payload = payloads(witness)[name]
    for path, content in containers(payload, tmp_path / "evil.pdparams"):
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            read_state_dict(path)
        assert f"{name}, which is neither" in str(caught.value)
        assert str(path) in str(caught.value)
        with pytest.raises(WeightsError):
            load_weights(paddle.nn.Linear(1, 2), path)
        assert not witness.exists()


def test_the_payload_is_real(tmp_path):
    """Python's own pickle does run it, so the test above can fail."""
    pickle.loads(pickle.dumps(payloads(tmp_path / "witness")[".eval"]))
    assert (tmp_path / "witness").exists()


def test_classes_with_attributes_cannot_be_smuggled_in(tmp_path):
    """BUILD sets attributes on what is on the stack; here on an array class, a name, a number."""
    for content in (b"\x80\x02cnumpy\nndarray\n}b.", b"\x80\x02cargparse\nNamespace\n)\x81}b.", b"\x80\x02K\x01}b."):
        (tmp_path / "w.pdparams").write_bytes(content)
        with pytest.raises(WeightsError):
            read_state_dict(tmp_path / "w.pdparams")
    assert isinstance(np.ndarray, type)


def test_nested_tuples_as_keys_take_no_time(tmp_path):
    """Hashing a tuple that holds itself twice, 60 levels deep, would take longer than the universe has."""
    nested = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02})" + nested + b"K\x01s.")
    with pytest.raises(WeightsError, match="tuple"):
        read_state_dict(tmp_path / "w.pdparams")


def corpus():
    state = {"a.weight": paddle.arange(3000).reshape([50, 60]).astype("float32"), "b": paddle.ones([3], "bfloat16")}
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz-corpus-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    files = {}
    for protocol in (2, 4):
        paddle.save(state, str(folder / "w"), protocol=protocol)
        files[f"paddle{protocol}"] = (folder / "w").read_bytes()
    paddle.save({"model": state, "epoch": 1}, str(folder / "w"))
    files["nested"] = (folder / "w").read_bytes()
    safetensors.paddle.save_file(state, str(folder / "w"))
    files["safetensors"] = (folder / "w").read_bytes()
    (folder / "w").unlink()
    folder.rmdir()
    for path in sorted(DATA.glob("*.pth")):
        files[path.name] = path.read_bytes()
    return files


CORPUS = corpus()
INTERESTING = [
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x00" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b".",
    b"(",
    b"R",
    b"b",
    b"}",
]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "overwrite", "insert", "delete", "truncate", "copy"]),
        # Most of what a parser reads stands at the ends of a file, the rest is data.
        st.one_of(st.integers(0, 400), st.integers(-1500, -1), st.integers(0, 2**20)),
        st.one_of(st.sampled_from(INTERESTING), st.binary(min_size=1, max_size=9)),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data, edits):
    data = bytearray(data)
    for kind, place, value in edits:
        at = place % max(len(data), 1)
        if kind == "flip" and data:
            data[at] ^= value[0] or 1
        elif kind == "overwrite":
            data[at : at + len(value)] = value
        elif kind == "insert":
            data[at:at] = value
        elif kind == "delete":
            del data[at : at + value[0]]
        elif kind == "truncate":
            del data[at:]
        elif kind == "copy":
            data[at:at] = data[value[0] : value[0] + 40]
    return bytes(data)


@settings(max_examples=EXAMPLES, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 1000)
@given(name=st.sampled_from(sorted(CORPUS)), edits=EDITS)
@pytest.mark.slow
def test_damaged_files_give_the_documented_error_or_arrays(tmp_path_factory, name, edits):
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    path.write_bytes(mutated(CORPUS[name], edits))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        state = read_state_dict(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in state.values())
    # Kilobytes: a file of 15 kB must not make the process grow by 64 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 65536
