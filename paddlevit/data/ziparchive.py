"""Members of a zip file, read by position so that any number of processes can share it: of each, 17 bytes are kept."""

from __future__ import annotations

import functools
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from paddlevit.errors import MissingFileError, UserError

_LOCAL = struct.Struct("<4s22xHH")  # the header before a member's content: PKWARE's APPNOTE.TXT, section 4.3.7
_PLACE = np.dtype([("offset", np.int64), ("size", np.int64), ("deflated", np.bool_)])
_ENCRYPTED, _UTF8 = 1, 1 << 11
_MOST_BYTES = 1 << 30  # however small it is stored, no image unpacks to more


class ZipArchive:
    """A zip file of stored and deflated members. Raises UserError where it is missing or anything else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        members = self._members()
        self.names: dict[bytes, int] = {}
        for i, member in enumerate(members):  # as they stand in the file: not all writers say that theirs are UTF-8
            self.names[member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437")] = i
        places = ((member.header_offset, member.compress_size, bool(member.compress_type)) for member in members)
        self._places = np.fromiter(places, _PLACE, len(members))
        offsets = self._places["offset"]
        if (offsets + self._places["size"] > os.stat(path).st_size).any() or (offsets < 0).any():
            raise UserError(f"{path} is not a complete zip file: a member extends past its end")

    def keep(self, numbers: np.ndarray) -> None:
        """Forget the names, and all members but `numbers`, which are numbered from 0 in this order."""
        self.names, self._places = {}, self._places[numbers]

    def read(self, number: int, name: str) -> bytes:
        """The content of a member; `name` is what messages call it. Raises UserError where it is damaged."""
        offset, size, deflated = self._places[number].item()
        try:
            signature, name_size, extra_size = _LOCAL.unpack(self._at(_LOCAL.size, offset))
            data = self._at(size, offset + _LOCAL.size + name_size + extra_size)
            if signature != b"PK\3\4" or len(data) != size:
                raise struct.error("this is not a member, or not all of it")
            return _inflated(data) if deflated else data
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from None
        except (struct.error, zlib.error) as error:
            raise UserError(f"{name} is damaged: {error}") from None

    def _at(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        if not hasattr(os, "pread"):  # Windows, where this process is the only one
            self._file.seek(offset)
            return self._file.read(size)
        return os.pread(self._file.fileno(), size, offset)

    @functools.cached_property
    def _file(self) -> BinaryIO:
        return open(self.path, "rb", buffering=0)  # processes that are forked share it

    def _members(self) -> list[zipfile.ZipInfo]:
        """All but folders. The list takes half a kilobyte for each, and is not kept."""
        try:
            with zipfile.ZipFile(self.path) as file:
                members = [member for member in file.infolist() if not member.is_dir()]
        except FileNotFoundError:
            raise MissingFileError(f"there is no zip file {self.path}") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # a damaged directory can raise anything
            raise UserError(f"{self.path} is not a complete zip file: {error}") from None
        for member in members:
            if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                what = "encrypted" if member.flag_bits & _ENCRYPTED else f"compressed by method {member.compress_type}"
                raise UserError(f"{self.path}: {member.filename} is {what}, allowed: stored or deflated members")
        return members


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(data, _MOST_BYTES)
    if not inflater.eof:
        raise zlib.error("it ends too early" if len(content) < _MOST_BYTES else "it unpacks to over 1 GiB")
    return content
