"""Which packets must be decoded to see some chosen frames, with the same pixels as decoding everything.

Decoding starts at the last entry point before a chosen frame and stops at it. In H.264, pictures that no other
picture reads are left out unless they are chosen themselves. The frames are equal to the bit to those of decoding the
whole clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def runs(packets: Sequence[Any], chosen: set[int], codec: str, extradata: bytes | None) -> list[list[Any]]:
    """Lists of packets to decode one after the other, the decoder being flushed between lists.

    Args:
        packets: all packets of the stream in decoding order, each with a pts.
        chosen: pts of the frames wanted.
    """
    split = nal_splitter(extradata) if codec == "h264" else None
    enters = [i for i, packet in enumerate(packets) if packet.is_keyframe and (not split or has_idr(packet, split))]
    if codec == "gif":
        enters = []  # every picture is drawn over the one before
    if not enters or enters[0] != 0:
        enters.insert(0, 0)
    spans: list[list[int]] = []
    place = 0
    for i, packet in enumerate(packets):
        while place + 1 < len(enters) and enters[place + 1] <= i:
            place += 1
        if packet.pts not in chosen:
            continue
        # A picture shown before its entry point leans on the group before that.
        at = place
        while at > 0 and packets[enters[at]].pts > packet.pts:
            at -= 1
        if spans and enters[at] <= spans[-1][1]:
            spans[-1][1] = i
        else:
            spans.append([enters[at], i])
    return [
        [p for p in packets[start : stop + 1] if p.pts in chosen or split is None or is_read_by_others(p, split)]
        for start, stop in spans
    ]


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
