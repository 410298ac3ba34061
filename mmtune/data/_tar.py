"""A walk over the headers of a tar file that tells damage from the end.

`tarfile` stops without a word at a hole of zeros, at a bad checksum and at the end of a file that was cut between two
members. Here each of these is a `Damage`, the walk goes on at the next header that is whole, and only two blocks of
zeros with nothing behind them count as the end. Layout: POSIX.1-2017, pax "ustar Interchange Format" and "pax Extended
Header Records"; GNU long names ("L").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Most bytes of an extended header (a long name)."""
_CHUNK = 1 << 20
_ZERO = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """One header and where its content lies."""

    name: str
    """As written; undecodable bytes come as lone surrogates."""
    type: str
    """Type flag of the header: "0" is a plain file."""
    offset: int
    """First byte of the content."""
    size: int
    """Bytes of content."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of the file that could not be read as tar."""

    offset: int
    end: int
    what: str


def walk(file: int) -> Iterator[Member | Damage]:
    """Members and damages of an open tar file (a descriptor) in their order. Never raises for bad content."""
    length = os.fstat(file).st_size
    position, name, size = 0, None, None  # name and size that an extended header gave for the next member
    while True:
        block = os.pread(file, BLOCK, position)
        if len(block) < BLOCK:
            what = "the file ends inside a header" if block else "the file ends without an end mark"
            yield Damage(position, length, what)
            return
        if block == _ZERO:
            more = _nonzero(file, position)
            if more is None:
                if length - position < 2 * BLOCK:
                    yield Damage(position, length, "the end mark is cut")
                return
            found = _resync(file, more)
            yield Damage(position, found or length, "a hole of zeros")
            if found is None:
                return
            position, name, size = found, None, None
            continue
        header = _header(block)
        if header is None:
            found = _resync(file, position + BLOCK)
            yield Damage(position, found or length, "a header with a wrong checksum")
            if found is None:
                return
            position, name, size = found, None, None
            continue
        here, kind, bytes_ = header
        content = position + BLOCK
        if kind in "xgLK":
            end = content + _padded(bytes_)
            if bytes_ > MAX_EXTENDED or end > length:
                found = None if end > length else _resync(file, content)
                yield Damage(position, found or length, "an extended header that is cut or too long")
                if found is None:
                    return
                position, name, size = found, None, None
                continue
            text = os.pread(file, bytes_, content)
            if kind == "L":
                name = _text(text.split(b"\0", 1)[0])
            elif kind == "x":
                fields = _pax(text)
                name = fields.get("path", name)
                size = int(fields["size"]) if fields.get("size", "").isdigit() else size
            position = end
            continue
        here, bytes_ = name if name is not None else here, size if size is not None else bytes_
        name = size = None
        if kind not in "0\0" and kind not in "7S":
            bytes_ = 0  # links, devices and folders have no content, whatever the size field says
        end = content + _padded(bytes_)
        if content + bytes_ > length:
            yield Damage(position, length, f"the file ends inside {here}")
            return
        yield Member(here, "0" if kind == "\0" else kind, content, bytes_)
        position = end


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int | None:
    """Octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _header(block: bytes) -> tuple[str, str, int] | None:
    """Name, type flag and size of a header block, or none when the checksum or a number is wrong."""
    wanted, size = _number(block[148:156]), _number(block[124:136])
    rest = block[:148] + b" " * 8 + block[156:]
    if wanted is None or size is None or size < 0:
        return None
    if wanted != sum(rest) and wanted != sum(byte - 256 if byte > 127 else byte for byte in rest):
        return None
    name = _text(block[:100].split(b"\0", 1)[0])
    prefix = block[345:500].split(b"\0", 1)[0]
    # GNU headers keep other things in the place of the prefix.
    if prefix and block[257:263] == b"ustar\0":
        name = f"{_text(prefix)}/{name}"
    return name, chr(block[156]), size


def _nonzero(file: int, position: int) -> int | None:
    """The first block from `position` on that is not all zeros, or none."""
    while chunk := os.pread(file, _CHUNK, position):
        if chunk.count(0) != len(chunk):
            place = len(chunk) - len(chunk.lstrip(b"\0"))
            return position + place // BLOCK * BLOCK
        position += len(chunk)
    return None


def _resync(file: int, position: int) -> int | None:
    """The first block from `position` on that is a whole header with a magic word, or none."""
    while len(chunk := os.pread(file, _CHUNK, position)) >= BLOCK:
        for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[start : start + BLOCK]
            if block[257:262] == b"ustar" and _header(block) is not None:
                return position + start
        position += len(chunk) // BLOCK * BLOCK
    return None


def _pax(text: bytes) -> dict[str, str]:
    """Records of the form "LENGTH KEY=VALUE\\n"; what is not of this form ends the reading."""
    fields: dict[str, str] = {}
    while text:
        digits, space, _ = text.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 8:
            break
        record, text = text[: int(digits)], text[int(digits) :]
        key, sign, value = record[len(digits) + 1 :].rstrip(b"\n").partition(b"=")
        if not sign:
            break
        fields[_text(key)] = _text(value)
    return fields
