"""Which packets must be decoded to see some chosen frames, with the same pixels as decoding everything.

Decoding starts at the last entry point before a chosen frame and stops at it. In H.264, pictures that no other
picture reads are left out unless they are chosen themselves. The frames are equal to the bit to those of decoding the
whole clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def spans(pts: Sequence[int], enters: Sequence[int], chosen: set[int], codec: str) -> list[tuple[int, int]]:
    """First and last number of the packets of each run to decode, the decoder being flushed between runs.

    Args:
        pts: of all packets of the stream in decoding order.
        enters: numbers of the packets at which decoding can begin.
        chosen: pts of the frames wanted.
    """
    starts = [] if codec == "gif" else list(enters)  # every picture of a GIF is drawn over the one before
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    found: list[tuple[int, int]] = []
    index = 0
    for number, stamp in enumerate(pts):
        while index + 1 < len(starts) and starts[index + 1] <= number:
            index += 1
        if stamp not in chosen:
            continue
        # A picture shown before its entry point leans on the group before that.
        at = index
        while at > 0 and pts[starts[at]] > stamp:
            at -= 1
        if found and starts[at] <= found[-1][1]:
            found[-1] = (found[-1][0], number)
        else:
            found.append((starts[at], number))
    return found


def needed(packet: Any, chosen: set[int], split: Splitter | None) -> bool:
    """Whether a packet of a run must be decoded: for itself, or for others that are predicted from it."""
    return split is None or packet.pts in chosen or is_read_by_others(packet, split)


Splitter = Callable[[memoryview], Iterator[int]]


def nal_splitter(extradata: bytes | None) -> Splitter:
    """How to find the first byte of every H.264 unit in a packet: by length prefixes (MP4, Matroska) or start codes."""
    if not extradata or extradata[0] != 1 or len(extradata) < 5:
        return _by_start_code
    width = (extradata[4] & 3) + 1

    def by_length(data: memoryview) -> Iterator[int]:
        at, end = 0, len(data)
        while at + width < end:
            size = int.from_bytes(data[at : at + width], "big")
            yield data[at + width]
            at += width + size

    return by_length


def has_idr(packet: Any, split: Splitter) -> bool:
    """True when decoding can begin at this packet without anything before it."""
    return any(head & 31 == 5 for head in split(memoryview(packet)))


def is_read_by_others(packet: Any, split: Splitter) -> bool:
    """False when every slice says (nal_ref_idc 0) that no other picture is predicted from it."""
    slices = [head for head in split(memoryview(packet)) if 1 <= head & 31 <= 5]
    return not slices or any(head & 0x60 for head in slices)


def _by_start_code(data: memoryview) -> Iterator[int]:
    raw = bytes(data)
    at = raw.find(b"\x00\x00\x01")
    while 0 <= at < len(raw) - 3:
        yield raw[at + 3]
        at = raw.find(b"\x00\x00\x01", at + 3)
