"""A reader of pickles that cannot run code, for weights files and CIFAR.

Python's own `pickle` imports and calls whatever a file names, and a few bytes can make it take gigabytes or never end.
`Unpickler` knows only the opcodes that it has a method for or that are listed at the end. A name stands for a builder
of ours or, where no weight needs it, for a `Placeholder`: nothing is imported. Long strings stay in the buffer.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Sequence
from math import prod
from typing import Any, Callable, NamedTuple, Union

import numpy as np

Buffer = Union[bytes, memoryview]
# Private, and alike in Python 3.9 to 3.13: `stack`, `append`, `read`, `pop_mark`, and `dispatch` by opcode.
_PurePython: Any = pickle._Unpickler

# Byte strings from this length on are views of the buffer; it also bounds what a file can have copied over and over.
_LONG = 512
_DTYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
# Names that are of no use but to run code or reach the system. None would run, but such a file means harm.
_HARMFUL = (
    *("builtins.__import__", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.setattr"),
    *("os.", "posix.", "nt.", "subprocess.", "commands.", "sys.", "io.", "_io.", "importlib.", "runpy.", "pty."),
    *("shutil.", "socket.", "ctypes.", "webbrowser.", "pickle.", "_pickle."),
)


class Refused(pickle.UnpicklingError):
    """The file names a function that is there to do harm."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"refers to {name}, which is neither an array nor a plain container: refused, and nothing of it was run"
        )


class Placeholder:
    """Stands for what a file names and no weight needs: takes whatever it is given and keeps nothing but its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        return self

    def __str__(self) -> str:
        return self.name

    def set_state(self, *_: Any) -> None:
        """Also what is called for items: nothing is kept."""

    append = extend = set_state


class LazyArray:
    """An array with a known `shape`; `read()` fetches a copy of its values."""

    def __init__(self, shape: Sequence[int], read: Callable[[], np.ndarray]) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.read = read

    def then(self, change: Callable[[np.ndarray], np.ndarray], shape: Sequence[int]) -> LazyArray:
        """The array `change(values)`, which has the shape `shape`."""
        return LazyArray(shape, lambda: change(self.read()))


class Text(NamedTuple):
    """A long text that was left in the buffer, as UTF-8."""

    utf8: memoryview

    def latin1(self) -> bytes:
        """The bytes that it stands for in protocol 2."""
        data = str(self.utf8, "utf-8").encode("latin-1")
        _give_back(self.utf8)
        return data


def copied(data: Buffer, dtype: np.dtype) -> np.ndarray:
    """The values in `data`, in this machine's byte order."""
    # Not into memory of NumPy's: it asks for huge pages, which took twice the processor's time to fill.
    values = np.frombuffer(bytearray(data), dtype).astype(dtype.newbyteorder("="), copy=False)
    _give_back(data)
    return values


def _give_back(data: Buffer) -> None:
    """Let the pages of a mapped file go that were read, or they count as this process's memory."""
    if isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap):
        data.obj.madvise(mmap.MADV_DONTNEED)


def sizes(values: Any) -> tuple[int, ...]:
    """`values`, a shape or strides from a pickle, once it is sure that they are no more than that."""
    plain = isinstance(values, tuple) and len(values) <= 32
    if not plain or not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
        raise ValueError("an array's shape is not a tuple of sizes")
    return values


class Dtype:
    """A NumPy dtype while its pickle is being read; `dtype` stays None where no weight has such a one."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = str(code) if isinstance(code, (str, Placeholder)) else ""
        self.dtype = np.dtype(code) if self.code in _DTYPES else None

    def set_state(self, state: tuple) -> None:
        """The second item of a dtype's state is its byte order."""
        if self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray(Placeholder):
    """A NumPy array while its pickle is being read: it becomes one when its state is set."""

    def __init__(self, *_: Any) -> None:
        super().__init__("an array without data")

    def set_state(self, state: tuple) -> None:
        """`state` is (version, shape, dtype, in Fortran's order, data)."""
        _, shape, dtype, fortran, data = state
        array = numpy_array(data, dtype, shape, "F" if fortran else "C")
        self.__class__, self.__dict__ = type(array), vars(array)  # type: ignore[assignment]


def numpy_array(data: Any, dtype: Dtype, shape: Any, order: Any, axes: Any = None) -> LazyArray | Placeholder:
    """The array of `data`, which is bytes, or text where protocol 2 or Python 2 wrote it.

    NumPy 2.3 and later store a transposed array as it lies in memory, with the order of its `axes`.
    """
    kind, shape = dtype.dtype, sizes(shape)
    if kind is None:
        return Placeholder(f"an array of dtype {dtype.code!r}")
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(data, (bytes, memoryview, Text)):
        raise TypeError("an array's values are not bytes")
    if not isinstance(data, Text) and len(data) != prod(shape) * kind.itemsize:
        raise ValueError(f"an array of shape {list(shape)} and dtype {kind} in {len(data)} bytes")

    def read() -> np.ndarray:
        raw = data.latin1() if isinstance(data, Text) else data
        return copied(raw, kind).reshape(shape, order="F" if order == "F" else "C").transpose(axes)

    axes = range(len(shape)) if axes is None else sizes(axes)
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"an array of {len(shape)} axes in the order {list(axes)}")
    return LazyArray([shape[axis] for axis in axes], read)


def _encode(text: Any, encoding: Any = "") -> Any:
    """Protocol 2 has no bytes: they stand as text, to be encoded as Latin-1."""
    if encoding != "latin1" or not isinstance(text, (str, Text)):
        raise ValueError("text in another encoding than Latin-1")
    return text if isinstance(text, Text) else text.encode("latin-1")


def _getattr(target: Any, _: Any) -> Placeholder:
    """Classes inside of others and members of an Enum are named so; of anything but a placeholder it is an attack."""
    if not isinstance(target, Placeholder):
        raise Refused("builtins.getattr")
    return target


NAMES: dict[str, Any] = {
    "builtins.getattr": _getattr,
    "builtins.bytes": lambda *_: b"",  # in protocol 2, where they are empty
    "builtins.tuple": lambda items: items,  # around (name, array) in Paddle's nested files
    "collections.OrderedDict": lambda *items: Placeholder("an OrderedDict of Python 2") if items else {},
    "collections.defaultdict": lambda *_: {},
    "_codecs.encode": _encode,
    "numpy.dtype": Dtype,
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": numpy_array for core in ("core", "_core")},
}


class _Window:
    """The `file` of an Unpickler: a buffer, and the place in it that is read next."""

    def __init__(self, data: Buffer, at: int) -> None:
        self.data = memoryview(data)
        self.at = at

    def read(self, length: int) -> Buffer:
        if not 0 <= length <= len(self.data) - self.at:
            raise EOFError("the file ends within the pickle")
        self.at += length
        piece = self.data[self.at - length : self.at]
        return piece if length >= _LONG else bytes(piece)

    def readline(self) -> bytes:
        line, newline, _ = bytes(self.data[self.at : self.at + _LONG]).partition(b"\n")
        self.at += len(line) + 1
        if not newline:
            raise EOFError("a name without an end")
        return line + newline


def _string(width: str, kind: str) -> Callable[[Any], None]:
    """The operation that reads a length of `struct` code `width` and that many bytes."""

    def load(unpickler: Any) -> None:
        (length,) = struct.unpack(width, unpickler.read(struct.calcsize(width)))
        data = unpickler.read(length)
        if kind == "text":
            data = data.decode("utf-8") if isinstance(data, bytes) else Text(data)
        elif kind == "python 2" and isinstance(data, bytes):
            data = data.decode("latin-1")
        unpickler.append(data)

    return load


class Unpickler(_PurePython):
    """Reads the pickle (protocols 2 to 5) that begins at byte `at` of `data`; `at` of `window` is where it has ended.

    `load` gives dict, list, tuple, set, scalars, bytes and what the builders in `names` return; strings of Python 2
    become text where they are short. `persistent` turns a persistent id (torch's storages) into an object. A hostile or
    damaged file can raise any Exception. What is returned is not safe to hash, compare or print as a whole: tuples can
    hold themselves so often that this never ends.
    """

    def __init__(
        self,
        data: Buffer,
        at: int = 0,
        *,
        names: dict[str, Any] = NAMES,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.window = _Window(data, at)
        self.names = names
        super().__init__(self.window)
        if persistent is not None:
            self.persistent_load = persistent  # which raises UnpicklingError otherwise

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full.startswith(_HARMFUL):
            raise Refused(full)
        return self.names[full] if full in self.names else Placeholder(full)

    def load_frame(self) -> None:
        """Frames tell a reader of streams how much to read ahead; here all is at hand."""
        self.read(8)

    def load_reduce(self) -> None:
        """Both calling a function and making an instance: the name's builder gets the arguments."""
        arguments, build = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(build):
            raise pickle.UnpicklingError("calls what is not a function")
        self.append(build(*arguments))

    load_newobj = load_reduce

    def load_newobj_ex(self) -> None:
        """Only instances of unknown classes are made so."""
        self.stack[-3:] = [Placeholder("an instance made with keywords")]

    def load_build(self) -> None:
        """Attributes of an object; those of a dict (an OrderedDict with torch's metadata) are not kept."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (Dtype, Placeholder)):
            target.set_state(state)
        elif not isinstance(target, dict):
            raise pickle.UnpicklingError(f"sets attributes of {type(target).__name__}")

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self.set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(_key, items[::2]), items[1::2]))
        elif not isinstance(target, Placeholder):
            raise pickle.UnpicklingError(f"sets items of {type(target).__name__}")

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Placeholder):
            raise pickle.UnpicklingError(f"adds members to {type(target).__name__}")

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # which changes what `append` appends to
        self.append(frozenset(map(_key, items)))

    load_short_binunicode, load_binunicode, load_binunicode8 = (_string(width, "text") for width in ("<B", "<I", "<Q"))
    load_short_binstring, load_binstring = (_string(width, "python 2") for width in ("<B", "<i"))
    load_short_binbytes, load_binbytes, load_binbytes8 = (_string(width, "bytes") for width in ("<B", "<I", "<Q"))
    load_bytearray8 = load_binbytes8

    def load_unknown(self) -> None:
        raise pickle.UnpicklingError("has an opcode that no weights file needs")


def _key(value: Any) -> Any:
    """A key of a dict or member of a set: only scalars, since hashing nested tuples can take for ever."""
    if isinstance(value, (str, int, float, bytes, type(None))):
        return value
    return Placeholder(f"a key of type {type(value).__name__}")


_STANDARD = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINFLOAT, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_SET, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
)
Unpickler.dispatch = dict.fromkeys(range(256), Unpickler.load_unknown)
for _opcode, _load in _PurePython.dispatch.items():
    _ours = vars(Unpickler).get(_load.__name__)
    if _ours or bytes([_opcode]) in _STANDARD:
        Unpickler.dispatch[_opcode] = _ours or _load
