"""Who writes to standard output and standard error: C++ libraries print there too, past Python's sys.stdout."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO


@contextmanager
def quiet() -> Iterator[None]:
    """Show what is printed meanwhile only where the block raises."""
    with tempfile.TemporaryFile("w+", buffering=1) as printed:
        try:
            with _redirected((1, 2), printed.fileno()), redirect_stdout(printed), redirect_stderr(printed):
                yield
        except BaseException:
            printed.seek(0)
            sys.stderr.write(printed.read())
            raise


@contextmanager
def only_results() -> Iterator[TextIO]:
    """Standard output for results alone: whatever else is printed meanwhile goes to standard error."""
    out: TextIO = sys.stdout
    with ExitStack() as stack:
        if out is sys.__stdout__:  # not a notebook's, or a test's, which do not write to the descriptor
            out.flush()
            out = stack.enter_context(open(os.dup(1), "w", encoding=out.encoding, errors=out.errors))
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
    ctypes.CDLL(None).fflush(None)
