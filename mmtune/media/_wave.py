"""WAV headers: the bytes of sound that they promise, and the values of writers that did not know the length."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_OPEN = 0x7FFF_0000
"""Sizes from here on, and 0, stand for "not known": recorders that write into a pipe put 0x7FFFFFFF, 0x80000000 or
0xFFFFFFFF there, less a header or rounded to whole blocks. No file within the default limit of bytes is so long."""
_CHUNKS = 1000
_FORM = 4096
"""Most bytes of a chunk that says how the sound is stored."""
_BESIDE = 4096
"""Bytes beside the sound that a library may look at."""


@dataclass(frozen=True)
class Wave:
    """Where the sound is in the file."""

    start: int
    """First byte of it."""
    promised: int | None
    """Bytes of it by the header; None for an unknown length."""
    form: bytes
    """The chunks that say how to read it."""


def find(data: bytes) -> Wave | None:
    """The chunk of sound; None where the header has none."""
    at, wide, form = 12, None, b""
    for _ in range(_CHUNKS):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if len(name) < 4:
            return None
        if name == b"ds64":  # 64-bit sizes of RF64: of the file, of the sound
            wide = int.from_bytes(data[at + 16 : at + 24], "little")
        if name in (b"fmt ", b"fact") and size <= _FORM:
            form += data[at : at + 8 + size + (size & 1)]
        if name == b"data":
            if wide is not None and size == 0xFFFFFFFF:
                size = wide
            known = 0 < size < _OPEN or _OPEN <= size <= len(data) - at - 8
            return Wave(at + 8, size if known else None, form)
        at += 8 + size + (size & 1)
    return None


def plain(data: bytes, wave: Wave) -> bytes:
    """A file with nothing but the sound, and with the sizes that it has; the same where it is one already."""
    have = len(data) - wave.start
    if wave.promised is not None and wave.start <= _BESIDE and have - wave.promised <= _BESIDE:
        return data
    sound = min(have if wave.promised is None else min(have, wave.promised), 0xFFFF_FFFE)
    size = min(len(wave.form) + 12 + sound, 0xFFFF_FFFE)
    head = b"RIFF" + struct.pack("<I", size) + b"WAVE" + wave.form + b"data" + struct.pack("<I", sound)
    return head + data[wave.start : wave.start + sound]
