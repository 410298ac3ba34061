"""Where the sound begins in a file with something before it: an ID3v2 tag, zero bytes, the rest of a frame."""

from __future__ import annotations

import re

_KBPS = {
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of Layer III by MPEG version: 1, and 2 with 2.5."""
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_ROW = 4
"""Consecutive frames by which a file that begins with other bytes counts as a sound."""
_TORN = 4096
"""Bytes of a frame that was cut before the first whole frame."""
_ZEROS = re.compile(rb"\x00*")
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_TAGS = 1000
"""Most tags one after the other."""


def frame(data: bytes, at: int) -> tuple[int, int] | None:
    """Bytes of the Layer III frame at `at`, and what stays the same from frame to frame; None where there is none."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, rate_of, index = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or rate_of in (0, 15) or index == 3:
        return None
    rate = _RATES[version][index]
    size = (144 if version == 3 else 72) * 1000 * _KBPS[3 if version == 3 else 2][rate_of - 1] // rate
    return size + (head[2] >> 1 & 1), version << 2 | index


def behind_tags(data: bytes) -> int:
    """Where the bytes after ID3v2 tags begin; 0 where there are none."""
    at = 0
    for _ in range(_TAGS):
        if data[at : at + 3] != b"ID3" or len(data) < at + 10 or max(data[at + 6 : at + 10]) > 127:
            break
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
    return min(at, len(data))


def behind_zeros(data: bytes, at: int) -> int:
    """Position of the first byte that is not zero, from `at` on."""
    match = _ZEROS.match(data, at)
    return match.end() if match else at


def first_frame(data: bytes, start: int = 0) -> int | None:
    """Where the first of several whole frames of MP3 in a row begins, near `start`; None where there are none."""
    for match in _SYNC.finditer(data, start, min(len(data), start + _TORN)):
        at, seen, kind = match.start(), 0, None
        while seen < _ROW and (found := frame(data, at)) and kind in (None, found[1]):
            kind, seen, at = found[1], seen + 1, at + found[0]
        if seen == _ROW or (seen > 1 and at >= len(data)):
            return match.start()
    return None
