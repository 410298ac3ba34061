"""How many pictures one packet makes a decoder decode. It decodes them all in one call, which nothing can stop.

An encoder puts one picture into a packet, in two fields at most, and with AV1 some that are not shown.
"""

from __future__ import annotations

import re

MOST = 32
"""Pictures in a packet."""
_UNITS = 100_000
"""Most units of a packet that are read."""
_FIRST_SLICE = re.compile(rb"\x00\x00\x01[\x01\x21\x41\x61\x05\x25\x45\x65][\x80-\xff]")
"""Start code, unit of a slice, and number 0 as its first block: a picture of H.264 begins."""


def pictures(packet: bytes, codec: str, extradata: bytes | None) -> int:
    """Pictures in a packet; 1 for a codec whose decoder takes one from each, and `MOST` + 1 where units do not end."""
    if codec == "h264":
        prefixed = bool(extradata) and extradata[0] == 1 and len(extradata) > 4  # type: ignore[index]
        width = (extradata[4] & 3) + 1 if prefixed else 0  # type: ignore[index]
        return max(len(_FIRST_SLICE.findall(packet)), _by_length(packet, width) if width else 0)
    return _of_av1(packet) if codec in ("av1", "libdav1d") else 1


def scans(packet: bytes, codec: str) -> int:
    """Passes over a picture of motion JPEG."""
    return packet.count(b"\xff\xda") if codec == "mjpeg" else 1


def _by_length(packet: bytes, width: int) -> int:
    at = count = units = 0
    while at + width + 1 < len(packet):
        at, size = at + width, int.from_bytes(packet[at : at + width], "big")
        count += packet[at] & 31 in (1, 5) and packet[at + 1] > 127
        at, units = at + size, units + 1
        if units > _UNITS:
            return MOST + 1
    return count


def _of_av1(packet: bytes) -> int:
    at = count = units = 0
    while at < len(packet):
        head, units = packet[at], units + 1
        count += head >> 3 & 15 in (3, 6)  # a frame header, and one with its frame
        at += 2 if head & 4 else 1
        if not head & 2:  # up to the end
            break
        size = index = 0
        while at < len(packet) and index < 56:
            size |= (packet[at] & 127) << index
            at, index = at + 1, index + 7
            if packet[at - 1] < 128:
                break
        at += size
        if units > _UNITS:
            return MOST + 1
    return count
