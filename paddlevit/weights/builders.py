"""What the names in a weights file's pickle stand for. A name that is not here is refused."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Callable, Literal

import numpy as np

from paddlevit.weights.lazy import LazyArray, Span, strided
from paddlevit.weights.pickles import Inert, Named, plain
from paddlevit.weights.report import WeightsError

# NumPy has no bfloat16: its bits travel as uint16 (as in Paddle) until `lazy.from_bits` widens them.
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_DTYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")


Order = Literal["C", "F"]  # the last index varies fastest, or the first


class Dtype:
    """A NumPy dtype while its pickle is being read."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _DTYPES:
            raise WeightsError(f"holds an array of dtype {code!r}, which no weight has")
        self.dtype = np.dtype(code)

    def set_state(self, state: tuple) -> None:
        """The second item of a dtype's state is its byte order."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray(LazyArray):
    """A NumPy array while its pickle is being read: first its type, then shape, dtype and data."""

    def __init__(self, *_: Any) -> None:
        super().__init__((), self._unfinished)

    @staticmethod
    def _unfinished() -> np.ndarray:
        raise WeightsError("holds an array without data")

    def set_state(self, state: tuple) -> None:
        """`state` is (version, shape, dtype, in Fortran's order, data)."""
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype.dtype, shape, "F" if fortran else "C")

    def fill(self, data: bytes | str | Span, dtype: np.dtype, shape: Sequence[int], order: Order) -> None:
        shape = tuple(int(size) for size in shape)
        if min(shape, default=0) < 0:
            raise ValueError(f"an array of shape {list(shape)}")
        stored = None if isinstance(data, Span) and data.text else len(data)
        if stored not in (None, prod(shape) * dtype.itemsize):
            raise ValueError(f"an array of shape {list(shape)} and dtype {dtype} in {stored} bytes")
        self.shape = shape
        self._fetch = lambda: _array(data, dtype, shape, order)


def _array(data: bytes | str | Span, dtype: np.dtype, shape: tuple, order: Order) -> np.ndarray:
    raw = (
        data.read() if isinstance(data, Span) else bytearray(data.encode("latin-1") if isinstance(data, str) else data)
    )
    return np.frombuffer(raw, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="), copy=False)


def _frombuffer(data: Any, dtype: Dtype, shape: tuple, order: Order) -> NumpyArray:
    array = NumpyArray()
    array.fill(data, dtype.dtype, shape, order)
    return array


def _scalar(dtype: Dtype, data: Any) -> Any:
    return _array(data, dtype.dtype, (), "C").item()


def _encode(text: str | Span, encoding: str = "") -> Any:
    """Protocol 2 has no bytes: they stand as text, to be encoded as Latin-1."""
    if encoding != "latin1" or not isinstance(text, (str, Span)):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text if isinstance(text, Span) else text.encode("latin-1")


def _container(kind: Callable[..., Any]) -> Callable[..., Any]:
    def build(items: Any = ()) -> Any:
        if not isinstance(items, (list, tuple)):
            raise TypeError(f"a container made of {type(items).__name__}")
        return kind(items)

    return build


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise ValueError("bytes made of something else")
    return b""


class Storage:
    """A torch storage: `size` elements of `dtype`; `fetch(start, count)` reads some of them."""

    def __init__(self, dtype: np.dtype, size: int, fetch: Callable[[int, int], np.ndarray]) -> None:
        self.dtype = dtype
        self.size = size
        self.fetch = fetch


def storage_dtype(named: Named, byteorder: str) -> np.dtype:
    """The dtype of a torch storage class, of the file's byte order ('<' or '>')."""
    return np.dtype(byteorder + _STORAGES[named.name.rsplit(".", 1)[-1]])


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> LazyArray:
    """A torch tensor: a strided view into its storage, of which only the part that it covers is read."""
    last = sum((size - 1) * stride for size, stride in zip(shape, strides)) if prod(shape) else -1
    if offset < 0 or last >= storage.size - offset:
        raise ValueError(f"a tensor of shape {list(shape)} leaves its storage of {storage.size} elements")
    return LazyArray(shape, lambda: strided(storage.fetch(offset, last + 1), shape, strides))


def _subclass_of_tensor(function: Named, _: Any, arguments: tuple, *__: Any) -> Any:
    if function.build is None:
        raise WeightsError(f"builds {function.name}, which is no plain container")
    return function.build(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _set(items: Sequence[Any] = ()) -> set:
    return {plain(item) for item in items}


def _dict(items: Sequence[Sequence[Any]] = ()) -> dict:
    return {plain(key): value for key, value in items}


_BUILTINS: dict[str, Callable[..., Any] | None] = {
    "tuple": _container(tuple),
    "list": _container(list),
    "set": _set,
    "dict": _dict,
    "bytes": _no_bytes,
    "int": None,
    "float": None,
    "str": None,
    "bool": None,
}
_NUMPY: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": NumpyArray,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
# Their content is of no interest: a training script's arguments and configuration.
_INERT = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "yacs.config.CfgNode",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "torch.device",
)
_TABLE: dict[str, Callable[..., Any] | None] = {
    **{f"{module}.{name}": build for module in ("builtins", "__builtin__") for name, build in _BUILTINS.items()},
    **{f"numpy.{core}.{name}": build for core in ("core", "_core") for name, build in _NUMPY.items()},
    **{f"torch.{name}": None for name in _STORAGES},
    **dict.fromkeys(_INERT, Inert),
    "numpy.ndarray": None,
    "numpy.dtype": Dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass_of_tensor,
    "torch.nn.parameter.Parameter": None,
    "torch.Size": _container(tuple),
}


def named(name: str) -> Named:
    """The counterpart of 'module.name'. Raises WeightsError for every name but those of arrays and containers."""
    if name not in _TABLE:
        raise WeightsError(
            f"refers to {name}, which is neither an array nor a plain container, so it was refused and nothing of it "
            "was run. If you trust the file, load it with the program that wrote it and save the bare state dict"
        )
    return Named(name, _TABLE[name])
