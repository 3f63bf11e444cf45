"""A machine for the part of the pickle format that weight files use (protocols 2 to 5), which cannot run code.

Python's own `pickle` imports and calls whatever a file names. This machine knows no import and no call: a name is
looked up in a table of builders that is handed to it, and any other name is refused. Long strings stay in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import Any, BinaryIO, Callable

from paddlevit.weights.lazy import Span
from paddlevit.weights.report import WeightsError

# Byte strings from this length on are left in the file.
_LONG = 1 << 12
_MARK = object()


class Named:
    """What a class or function that a pickle names stands for here; `build` makes its harmless counterpart."""

    def __init__(self, name: str, build: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.build = build


class Inert:
    """An object whose content is of no interest (command-line arguments, a configuration): it takes up everything."""

    def __init__(self, *_: Any) -> None:
        """Ignores what it is built from."""

    def set_state(self, _: Any) -> None:
        """Ignores its attributes."""


class Unpickler:
    """Reads pickles from `file`, one after the other.

    `names` gives a builder for 'module.name' or raises WeightsError. `persistent` turns a persistent id (torch's
    storages) into an object. With `path`, the file on disk that `file` reads from its start, long byte strings become
    `Span`s. Every failure on a damaged file is an exception that `lazy.naming` knows.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        *,
        names: Callable[[str], Named],
        persistent: Callable[[Any], Any] | None = None,
        path: str | None = None,
    ) -> None:
        self.file = file
        self.size = size
        self.names = names
        self.persistent = persistent
        self.path = path

    def load(self) -> Any:
        """The next object. Containers are dict, list, tuple and set; other objects are what their builders made."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        while True:
            opcode = self.take(1)
            if opcode == b".":
                return self.pop()
            if opcode in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode]())
            elif opcode in _NUMBERS:
                self.stack.append(self.number(_NUMBERS[opcode]))
            elif opcode in _STRINGS:
                width, kind = _STRINGS[opcode]
                self.stack.append(self.string(self.number(width), kind))
            elif opcode in _OPERATIONS:
                _OPERATIONS[opcode](self)
            else:
                raise WeightsError(f"is no pickle of arrays (opcode {opcode!r})")

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        if not 0 <= length <= self.size - self.file.tell():
            raise EOFError("the file ends within the pickle")
        data = self.file.read(length)
        if len(data) != length:
            raise EOFError("the file ends within the pickle")
        return data

    def number(self, code: str) -> Any:
        """The next number, by its `struct` code."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self, length: int, kind: str) -> Any:
        """The next string: 'text' is UTF-8, 'bytes' is binary, 'latin' is a str of Python 2 (binary where long)."""
        if self.path is None or length < _LONG:
            data = self.take(length)
            return data if kind == "bytes" else data.decode("utf-8" if kind == "text" else "latin-1", "strict")
        offset = self.file.tell()
        # Beyond the end of the file, the next opcode is what is missing.
        self.file.seek(length, 1)
        return Span(self.path, offset, length, text=kind == "text")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark in the place of a value")
        return value

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def top(self) -> Any:
        return self.stack[-1]

    def mark(self) -> None:
        self.stack.append(_MARK)

    def proto(self) -> None:
        protocol = self.number("<B")
        if not 2 <= protocol <= 5:
            raise WeightsError(f"is a pickle of protocol {protocol}: save it again with protocol 2 to 5")

    def frame(self) -> None:
        self.number("<Q")

    def long1(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def make_tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.stack.append(tuple(values[::-1]))

    def marked_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def append(self) -> None:
        value = self.pop()
        self.extend([value])

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise TypeError("items for something that is no list")

    def set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, dict):
            target.update({plain(key): value for key, value in zip(values[::2], values[1::2])})
        elif not isinstance(target, Inert):
            raise TypeError("items for something that is no dict")

    def add_items(self) -> None:
        values = self.pop_to_mark()
        self.top().update({plain(value) for value in values})

    def frozen_set(self) -> None:
        self.stack.append(frozenset(plain(value) for value in self.pop_to_mark()))

    def find(self) -> None:
        module, name = (self.line() for _ in range(2))
        self.stack.append(self.names(f"{module}.{name}"))

    def line(self) -> str:
        data = self.file.readline(256)
        if not data.endswith(b"\n"):
            raise EOFError("a name without an end")
        return data[:-1].decode("utf-8")

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(self.names(f"{module}.{name}"))

    def call(self) -> None:
        """Both calling a function and making an instance: the name's builder gets the arguments."""
        arguments, named = self.pop(), self.pop()
        if not isinstance(named, Named) or named.build is None or not isinstance(arguments, tuple):
            raise WeightsError(f"builds {getattr(named, 'name', type(named).__name__)}, which is no plain container")
        self.stack.append(named.build(*arguments))

    def set_state(self) -> None:
        """Attributes of an object; those of a dict (an OrderedDict with torch's metadata) are not kept."""
        state, target = self.pop(), self.top()
        if not isinstance(target, dict):
            target.set_state(state)

    def load_persistent(self) -> None:
        if self.persistent is None:
            raise WeightsError("refers to data outside of the file")
        self.stack.append(self.persistent(self.pop()))


def plain(key: Any) -> Hashable:
    """A key of a dict or member of a set; only scalars, since hashing nested tuples can be made to take for ever."""
    if not isinstance(key, (str, int, float, bytes, type(None))):
        raise TypeError(f"a key of type {type(key).__name__}")
    return key


_CONSTANTS: dict[bytes, Callable[[], Any]] = {
    b"N": lambda: None,
    b"\x88": lambda: True,
    b"\x89": lambda: False,
    b"}": dict,
    b"]": list,
    b")": tuple,
    b"\x8f": set,
}
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
_STRINGS = {
    b"X": ("<I", "text"),
    b"\x8c": ("<B", "text"),
    b"\x8d": ("<Q", "text"),
    b"B": ("<I", "bytes"),
    b"C": ("<B", "bytes"),
    b"\x8e": ("<Q", "bytes"),
    b"\x96": ("<Q", "bytes"),
    b"T": ("<i", "latin"),
    b"U": ("<B", "latin"),
}
_OPERATIONS: dict[bytes, Callable[[Unpickler], Any]] = {
    b"\x80": Unpickler.proto,
    b"\x95": Unpickler.frame,
    b"\x8a": Unpickler.long1,
    b"(": Unpickler.mark,
    b"0": lambda machine: machine.stack.pop(),
    b"1": Unpickler.pop_to_mark,
    b"q": lambda machine: machine.put(machine.number("<B")),
    b"r": lambda machine: machine.put(machine.number("<I")),
    b"\x94": Unpickler.memoize,
    b"h": lambda machine: machine.get(machine.number("<B")),
    b"j": lambda machine: machine.get(machine.number("<I")),
    b"\x85": lambda machine: machine.make_tuple(1),
    b"\x86": lambda machine: machine.make_tuple(2),
    b"\x87": lambda machine: machine.make_tuple(3),
    b"t": Unpickler.marked_tuple,
    b"a": Unpickler.append,
    b"e": lambda machine: machine.extend(machine.pop_to_mark()),
    b"s": Unpickler.set_item,
    b"u": lambda machine: machine.set_items(machine.pop_to_mark()),
    b"\x90": Unpickler.add_items,
    b"\x91": Unpickler.frozen_set,
    b"c": Unpickler.find,
    b"\x93": Unpickler.find_on_stack,
    b"R": Unpickler.call,
    b"\x81": Unpickler.call,
    b"b": Unpickler.set_state,
    b"Q": Unpickler.load_persistent,
}
