"""Members of a zip file, read by position so that any number of processes can share it."""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from paddlevit.data.array_cache import Arrays
from paddlevit.errors import MissingFileError, UserError

# Layouts of PKWARE's APPNOTE.TXT: sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (its end).
_LOCAL = struct.Struct("<4s22xHH")
_CENTRAL = struct.Struct("<4s4xHH8xLLHHH8xL")
_END = struct.Struct("<4s8xLL2x")
_END64 = struct.Struct("<4s36xQQ")
_LOCATOR64 = struct.Struct("<4s4xQ4x")
_LONGEST_COMMENT = 0xFFFF
_IN_EXTRA_FIELD = 0xFFFFFFFF

_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1


# However small it is stored, no image unpacks to more.
_MOST_BYTES = 1 << 30


class Members(dict[bytes, int]):
    """Name of a member -> its number."""

    def top_folder(self) -> bytes:
        """The one folder, with its slash, in which all members lie; empty where there is none."""
        tops = {name[: name.find(b"/") + 1] for name in self}
        return tops.pop() if len(tops) == 1 else b""


class ZipArchive:
    """A zip file of stored and deflated members.

    `places` says where they are, 17 bytes each: their 'offsets', their 'sizes' as stored, and their 'methods'. It is
    given by directory(), or by who has read that before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: Arrays = {}
        self._file: BinaryIO | None = None
        self._pid = -1

    def directory(self) -> tuple[Members, Arrays]:
        """The number of each member by its name, and where they are, by number.

        Raises MissingFileError or UserError where the file is missing, no zip, damaged, or has members that are
        encrypted or compressed by other methods than deflate.
        """
        try:
            first, directory = self._central_directory()
            return self._parse(first, directory)
        except FileNotFoundError:
            raise MissingFileError(f"there is no zip file {self.path}") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        except (struct.error, IndexError):
            raise UserError(f"{self.path} is not a complete zip file: its directory is damaged") from None

    def read(self, number: int, name: str) -> bytes:
        """The content of a member; `name` is what messages call it. Raises UserError where it is damaged."""
        offset, size, method = (int(self.places[field][number]) for field in ("offsets", "sizes", "methods"))
        try:
            header = self._at(_LOCAL.size, offset)
            signature, name_size, extra_size = _LOCAL.unpack(header)
            data = self._at(size, offset + _LOCAL.size + name_size + extra_size)
            if signature != b"PK\3\4" or len(data) != size:
                raise struct.error("this is no member, or not all of it")
            return data if method == _STORED else _inflate(data)
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from None
        except (struct.error, zlib.error) as error:
            raise UserError(f"{name} is damaged: {error}") from None

    def _at(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`, through this process's own handle."""
        if self._pid != os.getpid():
            self._file, self._pid = open(self.path, "rb", buffering=0), os.getpid()  # noqa: SIM115 - stays open
        assert self._file is not None
        return os.pread(self._file.fileno(), size, offset)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_pid": -1}

    def _central_directory(self) -> tuple[int, bytes]:
        """The directory, and what to add to the offsets in it: other data may stand before the zip."""
        file_size = os.stat(self.path).st_size
        tail_size = min(file_size, _END.size + _LONGEST_COMMENT)
        tail = self._at(tail_size, file_size - tail_size)
        found = tail.rfind(b"PK\5\6")
        if found < 0:
            raise UserError(f"{self.path} is not a complete zip file: it has no directory at its end")
        end = file_size - tail_size + found
        _, size, offset = _END.unpack_from(tail, found)
        locator = self._at(_LOCATOR64.size, end - _LOCATOR64.size) if end >= _LOCATOR64.size else b""
        if locator.startswith(b"PK\6\7"):
            end = _LOCATOR64.unpack(locator)[1]
            signature, size, offset = _END64.unpack(self._at(_END64.size, end))
            if signature != b"PK\6\6":
                raise UserError(f"{self.path} is not a complete zip file: its directory is not where it should be")
        if size + offset > end:
            raise UserError(f"{self.path} is not a complete zip file: a part before its directory is missing")
        return end - size - offset, self._at(size, end - size)

    def _parse(self, first: int, directory: bytes) -> tuple[Members, Arrays]:
        members = Members()
        offsets, sizes, methods = array("Q"), array("Q"), array("B")
        most = os.stat(self.path).st_size
        at = 0
        while at < len(directory):
            signature, flags, method, size, full_size, name_size, extra_size, comment_size, offset = (
                _CENTRAL.unpack_from(directory, at)
            )
            name_at = at + _CENTRAL.size
            name = directory[name_at : name_at + name_size]
            if signature != b"PK\1\2":
                raise struct.error("no entry")
            if size == _IN_EXTRA_FIELD or full_size == _IN_EXTRA_FIELD or offset == _IN_EXTRA_FIELD:
                extra = directory[name_at + name_size : name_at + name_size + extra_size]
                size, offset = _long_fields(extra, full_size, size, offset)
            at = name_at + name_size + extra_size + comment_size
            if size + offset > most:
                raise struct.error("the member would end behind the directory")
            if name.endswith(b"/"):
                continue  # a folder
            if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
                what = "encrypted" if flags & _ENCRYPTED else f"compressed by method {method}"
                raise UserError(f"{self.path}: {os.fsdecode(name)} is {what}, allowed: stored or deflated members")
            members[name] = len(offsets)
            offsets.append(first + offset)
            sizes.append(size)
            methods.append(method)
        fields = {"offsets": offsets, "sizes": sizes, "methods": methods}
        return members, {name: np.frombuffer(values, dtype=values.typecode) for name, values in fields.items()}


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(data, _MOST_BYTES)
    if not inflater.eof:
        raise zlib.error("it ends too early" if len(content) < _MOST_BYTES else "it unpacks to over 1 GiB")
    return content


def _long_fields(extra: bytes, full_size: int, size: int, offset: int) -> tuple[int, int]:
    """Stored size and offset of a member whose 32-bit fields are too small (APPNOTE.TXT, section 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            if full_size == _IN_EXTRA_FIELD:
                values.pop(0)
            size = values.pop(0) if size == _IN_EXTRA_FIELD else size
            return size, values.pop(0) if offset == _IN_EXTRA_FIELD else offset
        at += 4 + length
    raise struct.error("no long fields")
