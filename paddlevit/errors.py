"""Mistakes that a user can mend. The command line prints their message and exits with code 2, without a traceback."""

from __future__ import annotations

import contextlib
import errno
import re
import reprlib
from collections.abc import Iterable, Iterator

_OF_A_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR)


class UserError(ValueError):
    """Names the file, key or line at fault, its value, and what is allowed."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100


def quoted(value: object) -> str:
    """`value` as a message shows it: of what is long, its beginning and its end."""
    return _SHORT.repr(value)


@contextlib.contextmanager
def about_keys(model: Iterable[str], **keys: str) -> Iterator[None]:
    """In a UserError about arguments, name the keys that they come from: those of MODEL, `model`, and `keys`."""
    try:
        yield
    except UserError as error:
        keys = {**{key.lower(): f"MODEL.{key}" for key in model}, **keys}
        raise UserError(re.sub(r"\w+", lambda word: keys.get(word[0], word[0]), str(error))) from None


@contextlib.contextmanager
def path_mistakes() -> Iterator[None]:
    """Turn the file system's errors about a forbidden or overlong path into UserErrors."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_A_PATH or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}") from error
