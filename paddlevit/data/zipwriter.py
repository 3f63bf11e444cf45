"""Writes a zip file of stored members that goes on where it was interrupted.

Images are compressed already: deflating them again costs time at every reading and saves nothing.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Callable, NamedTuple

from paddlevit.errors import UserError

# Layouts of PKWARE's APPNOTE.TXT: sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (its end).
_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_END64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4sHHHHLLH")
_LONG_OFFSET = struct.Struct("<HHQ")

_VERSION = 45  # the first that has long offsets
_UTF8_NAMES = 1 << 11
_FIRST_DAY = (1 << 5) | 1  # 1 January 1980: the same files always make the same zip
_MOST = 0xFFFFFFFF


class _Member(NamedTuple):
    name: bytes
    crc: int
    size: int
    offset: int


def write_zip(path: Path, names: list[str], read: Callable[[int], bytes]) -> Iterator[int]:
    """Write the members `names`, with read(i) as the i-th one's content, and give the number of those that are done.

    The file is `path`.unfinished until it is complete. What stands there already is kept as far as its members have
    these names. Raises UserError where a member is 4 GiB or longer, or its name longer than 65,535 bytes.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    encoded = [os.fsencode(name) for name in names]
    with open(unfinished, "r+b" if unfinished.exists() else "w+b") as file:
        members = list(_complete_members(file, encoded))
        file.seek(members[-1].offset + _length(members[-1]) if members else 0)
        file.truncate()
        yield len(members)
        for i in range(len(members), len(names)):
            members.append(_write_member(file, encoded[i], read(i)))
            yield len(members)
        _write_directory(file, members)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _length(member: _Member) -> int:
    return _LOCAL.size + len(member.name) + member.size


def _complete_members(file: BinaryIO, names: list[bytes]) -> Iterator[_Member]:
    """The members at the start of a file that are whole and have the names that come first."""
    file_size, offset = os.fstat(file.fileno()).st_size, 0
    for name in names:
        file.seek(offset)
        header = file.read(_LOCAL.size + len(name))
        if len(header) < _LOCAL.size + len(name):
            return
        signature, *_, crc, size, _, name_size, _ = _LOCAL.unpack_from(header)
        member = _Member(name, crc, size, offset)
        if signature != b"PK\3\4" or name_size != len(name) or header[_LOCAL.size :] != name:
            return
        offset += _length(member)
        if offset > file_size:
            return
        file.seek(member.offset + _LOCAL.size + len(name))
        if zlib.crc32(file.read(size)) != crc:
            return
        yield member


def _write_member(file: BinaryIO, name: bytes, content: bytes) -> _Member:
    if len(content) >= _MOST or len(name) > 0xFFFF:
        raise UserError(f"{os.fsdecode(name)}: a member of a zip file is shorter than 4 GiB, its name than 64 KiB")
    member = _Member(name, zlib.crc32(content), len(content), file.tell())
    fields = (_VERSION, _UTF8_NAMES, 0, 0, _FIRST_DAY, member.crc, member.size, member.size, len(name), 0)
    file.write(_LOCAL.pack(b"PK\3\4", *fields) + name + content)
    return member


def _write_directory(file: BinaryIO, members: list[_Member]) -> None:
    start = file.tell()
    for member in members:
        file.write(_entry(member))
    end = file.tell()
    count = len(members)
    file.write(_END64.pack(b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, end - start, start))
    file.write(_LOCATOR64.pack(b"PK\6\7", 0, end, 1))
    few, size, place = min(count, 0xFFFF), min(end - start, _MOST), min(start, _MOST)
    file.write(_END.pack(b"PK\5\6", 0, 0, few, few, size, place, 0))


def _entry(member: _Member) -> bytes:
    """A member's line of the directory."""
    far = member.offset >= _MOST
    extra = _LONG_OFFSET.pack(1, 8, member.offset) if far else b""
    name, crc, size, offset = member
    sizes: tuple[int, ...] = (crc, size, size, len(name), len(extra), 0, 0, 0, 0, _MOST if far else offset)
    return _CENTRAL.pack(b"PK\1\2", _VERSION, _VERSION, _UTF8_NAMES, 0, 0, _FIRST_DAY, *sizes) + name + extra
