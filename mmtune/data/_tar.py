"""A walk over the headers of a tar file that tells damage from the end.

`tarfile` stops without a word at a hole of zeros, at a bad checksum and at the end of a file that was cut between two
members. Here each of these is a `Damage`, the walk continues at the next header that is whole, and only two blocks of
zeros with nothing after them count as the end. What headers claim is not believed: a member whose size is no number
or reaches beyond the file, or whose name has no end, is one `Damage`, and those after it are read. Layout:
POSIX.1-2017, pax "ustar Interchange Format" and "pax Extended Header Records"; GNU long names ("L"), sparse files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmtune.data._names import printable

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Most bytes of an extended header (a long name)."""
MAX_NAME = 4096
"""Most characters of a name; file systems have no longer ones."""
SHOWN = 200
"""Most characters of a name in a message."""
_CHUNK = 1 << 20
_ZERO = bytes(BLOCK)
_OCTAL = re.compile(rb"[0-7]*")
_SIZE = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Member:
    """One header and where its content lies."""

    name: str
    """As written; undecodable bytes come as lone surrogates."""
    type: str
    """Type flag of the header: "0" is a plain file, "S" one with holes, in whichever of the four ways."""
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
    position, given = 0, _Given()
    while True:
        block = os.pread(file, BLOCK, position)
        if len(block) < BLOCK:
            what = "the file ends inside a header" if block else "the file ends without an end mark"
            yield Damage(min(position, length), length, what)
            return
        zeros = block == _ZERO
        header = None if zeros else _header(block)
        if header is None:
            start = position + BLOCK
            if zeros:
                more = _nonzero(file, position)
                if more is None:
                    if length - position < 2 * BLOCK:
                        yield Damage(position, length, "the end mark is cut")
                    return
                start = more
            found = _resync(file, start)
            yield Damage(position, found or length, "a hole of zeros" if zeros else "a header with a wrong checksum")
            if found is None:
                return
            position, given = found, _Given()
            continue
        name, kind, size = header
        content = position + BLOCK
        if kind in "xgLK":
            end = content + _padded(size)
            if size > MAX_EXTENDED or end > length:
                found = _resync(file, content)
                yield Damage(position, found or length, "an extended header that is cut or too long")
                if found is None:
                    return
                position, given = found, _Given()
                continue
            given.take(kind, os.pread(file, size, content))
            position = end
            continue
        name = given.name if given.name is not None else name
        size = given.size if given.size is not None else size
        if kind == "S":
            content = _behind_map(file, block, content)
        kind = "S" if given.sparse else "0" if kind in "\x007" else kind
        if kind not in "0S":
            size = 0  # links, devices and folders have no content, whatever the size field says
        fault, given = given.fault or _fault(name), _Given()
        end = content + _padded(size)
        if content + size > length:
            # a size that was made up must not take the rest of the shard with it
            found = _resync(file, content)
            yield Damage(position, found or length, f"the file ends inside {_short(name)}")
            if found is None:
                return
            position = found
            continue
        yield Damage(position, end, f"{_short(name)}: {fault}") if fault else Member(name, kind, content, size)
        position = end


@dataclass
class _Given:
    """What extended headers say of the next member."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False
    """Whether the content is a map of holes and what is between them."""
    fault: str = ""
    """Why the member cannot be read."""

    def take(self, kind: str, text: bytes) -> None:
        if kind == "L":
            self.name = _text(text.split(b"\0", 1)[0])
        elif kind == "x":
            fields = _pax(text)
            self.name = fields.get("GNU.sparse.name", fields.get("path", self.name))
            self.sparse = self.sparse or any(key.startswith("GNU.sparse.") for key in fields)
            if "size" in fields:
                if _SIZE.fullmatch(fields["size"]):
                    self.size = int(fields["size"])
                else:
                    self.fault = f"an extended header with size {_short(fields['size'])}"


def _fault(name: str) -> str:
    """What makes a name unusable, or nothing."""
    return f"a name of {len(name)} characters" if len(name) > MAX_NAME else ""


def _short(text: str) -> str:
    """Text of a header for a message: one line, and not long."""
    return printable(text[:SHOWN]) + (f"... ({len(text)} characters)" if len(text) > SHOWN else "")


def _behind_map(file: int, block: bytes, content: int) -> int:
    """Where the content of an old GNU sparse member begins: after the blocks that continue with its map of holes."""
    more = block[482]
    while more and len(block := os.pread(file, BLOCK, content)) == BLOCK:
        content, more = content + BLOCK, block[504]
    return content


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int | None:
    """Octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits or b"0", 8) if _OCTAL.fullmatch(digits) else None


def _header(block: bytes) -> tuple[str, str, int] | None:
    """Name, type flag and size of a header block, or None when the checksum or a number is wrong."""
    wanted, size = _number(block[148:156]), _number(block[124:136])
    rest = block[:148] + b" " * 8 + block[156:]
    if wanted is None or size is None:
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
            found_at = len(chunk) - len(chunk.lstrip(b"\0"))
            return position + found_at // BLOCK * BLOCK
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
    found_at = 0
    while (space := text.find(b" ", found_at, found_at + 9)) > found_at and text[found_at:space].isdigit():
        end = found_at + int(text[found_at:space])
        key, sign, value = text[space + 1 : end].rstrip(b"\n").partition(b"=")
        if not sign:
            break
        fields[_text(key)] = _text(value)
        found_at = end
    return fields
