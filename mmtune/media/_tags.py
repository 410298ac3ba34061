"""Texts beside a sound or film: title, artist, chapters. They are not used, and a library looks each up among all that
came before, so that a few megabytes of them take it hours.

Of FLAC and WAV they are taken out before the library sees the file. Of the others they are counted, and a file with
more of them than anybody writes is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mmtune.errors import MediaError, Reason

MOST = 10_000
"""Texts of a file. So many take a library a fraction of a second."""
_PAGES = re.compile(rb"OggS\x00")
_COMMENTS = re.compile(rb"OpusTags|\x03vorbis")
_FLAC_COMMENTS = re.compile(rb"[\x04\x84]...", re.DOTALL)
"""How packets with texts begin: of Opus, of Vorbis, and of FLAC, with a length in three bytes."""
_VENDOR = 1 << 14
_HEAD = 1 << 16
"""Bytes of a packet that are read: up to the number of its texts."""
_HEADERS = 3
"""Packets of a stream in which texts may be; in FLAC it is all before the first frame."""
_TAGS = re.compile(rb"\x12\x54\xc3\x67")
_SIMPLE = b"\x67\xc8"
_INFO = re.compile(rb"LIST(....)INFO", re.DOTALL)


def check(data: bytes, name: str, reason: Reason, origin: str) -> None:
    """Refuse a file with too many texts. Raises MediaError with `reason`."""
    count = _COUNTERS[name](data) if name in _COUNTERS else 0
    if count > MOST:
        raise refusal(count, reason, origin)


def refusal(count: int, reason: Reason, origin: str) -> MediaError:
    """The error for so many: `raise refusal(...)`."""
    return MediaError(reason, f"{origin}: {count} texts beside the media", f"at most {MOST}", "take them out")


def plain_flac(data: bytes) -> bytes:
    """A FLAC with nothing but its first block, which says how to read it, before the sound."""
    at, last = 4, False
    while not last and at + 4 <= len(data):
        last, size = bool(data[at] & 0x80), int.from_bytes(data[at + 1 : at + 4], "big")
        at += 4 + size
    first = 8 + int.from_bytes(data[5:8], "big")
    if not last or data[4] & 0x7F or at > len(data):  # the library judges it
        return data
    return data[:4] + bytes([data[4] | 0x80]) + data[5:first] + data[at:] if at > first else data


def _of_matroska(data: bytes) -> int:
    count = 0
    for match in _TAGS.finditer(data):
        first = data[match.end()] if match.end() < len(data) else 0
        width = 9 - first.bit_length()
        start = match.end() + width
        size = int.from_bytes(data[match.end() : start], "big") & (1 << 7 * width) - 1
        count += data.count(_SIMPLE, start, start + size)
    return count


def _of_avi(data: bytes) -> int:
    """Chunks of lists of texts; each takes eight bytes at least."""
    count = 0
    for match in _INFO.finditer(data):
        at, end = match.end(), min(len(data), match.start() + 8 + int.from_bytes(match[1], "little"))
        while at + 8 <= end and count <= MOST:
            count, size = count + 1, int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + size + (size & 1)
    return count


def _of_ogg(data: bytes) -> int:
    """The most texts that a packet among the first of any stream claims."""
    packets: dict[bytes, list[bytes]] = {}
    most = 0
    for match in _PAGES.finditer(data):
        at = match.start()
        if data[at + 5 : at + 6] and data[at + 5] & 2:  # a stream begins
            packets[data[at + 14 : at + 18]] = [b""]
        waiting = packets.get(data[at + 14 : at + 18])
        table = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        if waiting is None:
            continue
        body = at + 27 + len(table)
        for size in table:
            waiting[-1] += data[body : body + size] if len(waiting[-1]) < _HEAD else b""
            body += size
            if size < 255:
                most = max(most, _claimed(waiting[-1], waiting[0]))
                waiting[1:] = [*waiting[1:], b""][-_HEADERS:]
        flac = waiting[0].startswith(b"\x7fFLAC")
        if any(packet[:1] == b"\xff" for packet in waiting) if flac else len(waiting) > _HEADERS:
            del packets[data[at + 14 : at + 18]]
    return most


def _claimed(packet: bytes, first: bytes) -> int:
    """How many texts a packet says it has, `first` being the first one of its stream; 0 where it has none."""
    mark = (_FLAC_COMMENTS if first.startswith(b"\x7fFLAC") else _COMMENTS).match(packet)
    if mark is None:
        return 0
    at = mark.end()
    vendor = int.from_bytes(packet[at : at + 4], "little")
    if vendor > _VENDOR:
        return MOST + 1
    return int.from_bytes(packet[at + 4 + vendor : at + 8 + vendor], "little")


_COUNTERS: dict[str, Callable[[bytes], int]] = {"matroska": _of_matroska, "avi": _of_avi, "ogg": _of_ogg}
