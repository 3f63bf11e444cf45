"""Who writes to standard output and standard error: C++ libraries print there too, past Python's sys.stdout.

A terminal that is gone, a pipe that nobody reads, a closed or full stream: what is lost there ends no run. Only where
the output is the result is it an error.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from paddlevit.errors import UserError


class NobodyReads(BrokenPipeError):  # noqa: N818 - no error: `head` has enough
    """The pipe that results go to was closed at its other end."""


class _Lossy(io.FileIO):
    """Drops what cannot be written."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


class _Results(io.FileIO):
    """Raises NobodyReads, or a UserError, for what cannot be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise NobodyReads from None
        except OSError as error:
            raise UserError(f"standard output cannot be written: {error.strerror}") from None


def tolerate_losses() -> None:
    """Let no write to this process's own standard streams fail; characters that they cannot show are escaped.

    Those that are closed are opened: the next file of the process would get their number, and what C++ prints there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")) if os.name == "posix" else ():
        stream = getattr(sys, name)
        ours = isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Lossy)
        if ours or stream is not getattr(sys, f"__{name}__"):  # a notebook's, or a test's
            continue
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
        lossy = _text(_Lossy(number, "w", closefd=False), stream)
        setattr(sys, name, lossy)
        setattr(sys, f"__{name}__", lossy)


class _Text(io.TextIOWrapper):
    def write(self, text: str) -> int:
        return super().write(utf8_names(text))


def _text(raw: io.FileIO, like: TextIO | None) -> TextIO:
    encoding, lines = (like.encoding, bool(like.line_buffering)) if like else ("utf-8", False)
    return _Text(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=lines)


def utf8_names(text: str) -> str:
    """`text`, in which names of files are read as UTF-8 whatever the locale; bytes that are not UTF-8 stay escapes."""
    raw = "surrogateescape"  # how Python has bytes that it cannot read, in the C locale all that are not ASCII
    return re.sub("[\udc80-\udcff]+", lambda found: found[0].encode("utf-8", raw).decode("utf-8", raw), text)


def escaped(text: str) -> str:
    """`utf8_names` as text for every stream, without control characters of names, which a terminal would obey."""
    odd = "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
    return re.sub(odd, lambda found: found[0].encode("unicode_escape").decode("ascii"), utf8_names(text))


class Formatter(logging.Formatter):
    """Escapes what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        """As in logging."""
        return escaped(super().format(record))


@contextmanager
def quiet() -> Iterator[None]:
    """Show what is printed meanwhile only where the block raises."""
    with tempfile.TemporaryFile("w+", buffering=1, encoding="utf-8", errors="backslashreplace") as printed:
        try:
            with _redirected((1, 2), printed.fileno()), redirect_stdout(printed), redirect_stderr(printed):
                yield
        except BaseException:
            printed.seek(0)
            sys.stderr.write(printed.read())
            raise


@contextmanager
def only_results() -> Iterator[TextIO]:
    """Standard output for results alone: whatever else is printed meanwhile goes to standard error.

    Raises NobodyReads or UserError where results cannot be written.
    """
    out: TextIO = sys.stdout
    with ExitStack() as stack:
        if out is sys.__stdout__:  # not a notebook's, or a test's, which do not write to the descriptor
            out.flush()
            out = stack.enter_context(_text(_Results(os.dup(1), "w"), out))
        stack.enter_context(_redirected((1,), 2))
        stack.enter_context(redirect_stdout(sys.stderr))
        yield out


@contextmanager
def _redirected(descriptors: Sequence[int], target: int) -> Iterator[None]:
    _flush()
    kept = [os.dup(descriptor) for descriptor in descriptors]
    for descriptor in descriptors:
        os.dup2(target, descriptor)
    try:
        yield
    finally:
        _flush()
        for descriptor, copy in zip(descriptors, kept):
            os.dup2(copy, descriptor)
            os.close(copy)


def _flush() -> None:
    """Write out what Python and C hold back, so that it goes where it was printed to."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
