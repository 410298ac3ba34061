"""WAV headers: how many bytes of sound they promise, and what is written where the writer could not know."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_OPEN = 0x7FFF_0000
"""Sizes from here on, and 0, stand for "not known": recorders that write into a pipe put 0x7FFFFFFF, 0x80000000 or
0xFFFFFFFF there, less a header or rounded to whole blocks. No file within the default limit of bytes is so long."""
_CHUNKS = 1000


@dataclass(frozen=True)
class Wave:
    """Where the sound lies."""

    start: int
    """First byte of it."""
    promised: int | None
    """Bytes of it as the header says; none where it does not know."""


def find(data: bytes) -> Wave | None:
    """The chunk of sound; none where the header has none."""
    at, wide = 12, None
    for _ in range(_CHUNKS):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if len(name) < 4:
            return None
        if name == b"ds64":  # 64-bit sizes of RF64: of the file, of the sound
            wide = int.from_bytes(data[at + 16 : at + 24], "little")
        if name == b"data":
            if wide is not None and size == 0xFFFFFFFF:
                size = wide
            known = 0 < size < _OPEN or _OPEN <= size <= len(data) - at - 8
            return Wave(at + 8, size if known else None)
        at += 8 + size + (size & 1)
    return None


def closed(data: bytes, wave: Wave) -> bytes:
    """The same file with the sizes that it has."""
    head, sound = bytearray(data[: wave.start]), len(data) - wave.start
    fits = min(len(data) - 8, 0xFFFF_FFFE)
    head[:4] = b"RIFF"
    struct.pack_into("<I", head, 4, fits)
    struct.pack_into("<I", head, wave.start - 4, min(sound, 0xFFFF_FFFE))
    return bytes(head) + data[wave.start :]
