r"""The directory of a zip file whose members are not compressed: name -> where its bytes lie.

PyTorch's archives are such files. Since nothing is unpacked, no member can grow; and since only the directory is
read, whatever is said there is checked against the size of the file before it is used.

    file       members ... | directory | [zip64 end, locator] | end
    member     local header, 30 bytes + name + extra | its bytes
    directory  an entry a member, 46 bytes + name + extra + comment

Source: PKWARE, APPNOTE.TXT, sections 4.3.7 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct

from .disk import File, shown

MAX_MEMBERS = 100_000
MAX_DIRECTORY = 1 << 25
_END, _LOCATOR, _END64, _ENTRY, _LOCAL = b"PK\5\6", b"PK\6\7", b"PK\6\6", b"PK\1\2", b"PK\3\4"
_FULL = 0xFFFFFFFF  # "see the zip64 extra field"


def is_zip(file: File) -> bool:
    """True for a file that begins as a zip archive does."""
    return file.size >= 4 and file.read(0, 4).tobytes() == _LOCAL


def members(file: File) -> dict[str, tuple[int, int]]:
    """{name: (first byte, number of bytes)}; raises ValueError for what is compressed, encrypted or out of range."""
    count, size, start = _end(file)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise ValueError(f"{file.path} names too many members: {count}, in a directory of {size} bytes")
    data, at = file.read(start, size).tobytes(), 0
    found: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        if data[at : at + 4] != _ENTRY or at + 46 > size:
            raise ValueError(f"{file.path} is corrupted: its directory ends before its {count} entries")
        flags, method = struct.unpack_from("<HH", data, at + 8)
        packed, length, n_name, n_extra, n_comment = struct.unpack_from("<IIHHH", data, at + 20)
        (offset,) = struct.unpack_from("<I", data, at + 42)
        raw, extra = data[at + 46 : at + 46 + n_name], data[at + 46 + n_name : at + 46 + n_name + n_extra]
        at += 46 + n_name + n_extra + n_comment
        name = raw.decode("utf-8", errors="backslashreplace")
        if method or flags & 1:
            raise ValueError(f"{file.path}: {shown(name)} is compressed or encrypted, and PyTorch writes neither")
        length, packed, offset = _wide(file, extra, length, packed, offset)
        if packed != length or name in found:
            raise ValueError(f"{file.path} is corrupted: its directory contradicts itself about {shown(name)}")
        found[name] = (_first_byte(file, name, offset), length)
        if sum(found[name]) > start:
            raise ValueError(f"{file.path} is truncated: {shown(name)} is not all in it")
    _check_apart(file, found)
    return found


def _end(file: File) -> tuple[int, int, int]:
    """Number of entries, bytes and first byte of the directory."""
    first = max(0, file.size - 22 - 0xFFFF)
    tail = file.read(first, file.size - first).tobytes()
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise ValueError(f"{file.path} is truncated or corrupted: it begins as a zip archive and does not end as one")
    count, size, start = struct.unpack_from("<HII", tail, at + 10)
    end = first + at
    if end >= 20 and file.read(end - 20, 4).tobytes() == _LOCATOR:
        (end,) = struct.unpack("<Q", file.read(end - 12, 8).tobytes())
        record = file.read(end, 56).tobytes()
        if record[:4] != _END64:
            raise ValueError(f"{file.path} is corrupted: its zip64 directory is not where it should be")
        count, size, start = struct.unpack_from("<QQQ", record, 32)
    if start + size > end:
        raise ValueError(f"{file.path} is corrupted: its directory does not lie in it")
    return count, size, start


def _wide(file: File, extra: bytes, *values: int) -> tuple[int, int, int]:
    """Length, packed length and offset, each from the zip64 extra field where the entry holds only ones."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        kind, n = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + n]
        at += 4 + n
    needed = sum(value == _FULL for value in values)
    if 8 * needed > len(wide):
        raise ValueError(f"{file.path} is corrupted: a large member has no zip64 entry")
    given = iter(struct.unpack(f"<{needed}Q", wide[: 8 * needed]))
    length, packed, offset = (next(given) if value == _FULL else value for value in values)
    return length, packed, offset


def _first_byte(file: File, name: str, offset: int) -> int:
    header = file.read(offset, 30).tobytes()
    if header[:4] != _LOCAL:
        raise ValueError(f"{file.path} is corrupted: {shown(name)} is not where its directory says")
    return offset + 30 + sum(struct.unpack_from("<HH", header, 26))


def _check_apart(file: File, found: dict[str, tuple[int, int]]) -> None:
    end = 0
    for name, (start, length) in sorted(found.items(), key=lambda item: item[1]):
        if start < end:
            raise ValueError(f"{file.path} is corrupted: {shown(name)} overlaps another member")
        end = start + length
