"""Matroska and OGG written by hand, so that anything may be claimed in them."""

from __future__ import annotations

import struct
from functools import cache

KEY = bytes([0x10, 0, 0, 0x9D, 1, 0x2A, 64, 0, 48, 0])
"""The head of a key frame of VP8, 64 x 48."""
OPUS = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48000, 0, 0)


def element(name: str, *body: bytes) -> bytes:
    """An element of EBML, its name as hexadecimal digits."""
    whole = b"".join(body)
    size = bytes([0x80 | len(whole)]) if len(whole) < 127 else (len(whole) | 1 << 56).to_bytes(8, "big")
    return bytes.fromhex(name) + size + whole


def number(name: str, value: int) -> bytes:
    return element(name, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


PICTURES = (
    number("83", 1), element("86", b"V_VP8"), number("23e383", 1_000_000),
    element("e0", number("b0", 64), number("ba", 48)),
)  # fmt: skip
SOUND = (
    number("83", 2), element("86", b"A_OPUS"), element("63a2", OPUS), number("23e383", 20_000_000),
    element("e1", element("b5", struct.pack(">f", 48000.0)), number("9f", 1)),
)  # fmt: skip


def film(*parts: bytes, track: tuple[bytes, ...] = PICTURES) -> bytes:
    """One track and `parts` behind it."""
    head = element(
        "1a45dfa3", number("4286", 1), number("42f7", 1), number("42f2", 4), number("42f3", 8),
        element("4282", b"matroska"), number("4287", 4), number("4285", 2),
    )  # fmt: skip
    info = element("1549a966", number("2ad7b1", 1_000_000), element("4d80", b"x"), element("5741", b"x"))
    tracks = element("1654ae6b", element("ae", number("d7", 1), number("73c5", 1), number("9c", 1), *track))
    return head + element("18538067", info, tracks, *parts)


def cluster(time: int, count: int, packet: bytes = KEY) -> bytes:
    """So many packets in laces of up to 256, all of one time in milliseconds."""
    blocks = []
    while count > 0:
        here = min(count, 256)
        blocks.append(element("a3", b"\x81\0\0\x84" + bytes([here - 1]) + packet * here))
        count -= here
    return element("1f43b675", number("e7", time), *blocks)


@cache
def _table() -> tuple[int, ...]:
    rest = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 1 << 31 else value << 1) & 0xFFFFFFFF
        rest.append(value)
    return tuple(rest)


def page(stream: int, number: int, position: int, flags: int, *packets: bytes) -> bytes:
    """A page of OGG."""
    table = b"".join(b"\xff" * (len(one) // 255) + bytes([len(one) % 255]) for one in packets)
    head = b"OggS\0" + bytes([flags]) + struct.pack("<QII", position, stream, number)
    raw, check = head + bytes(4) + bytes([len(table)]) + table + b"".join(packets), 0
    for byte in raw:
        check = check << 8 & 0xFFFFFFFF ^ _table()[check >> 24 ^ byte]
    return head + struct.pack("<I", check) + raw[26:]


def ogg_streams(count: int) -> bytes:
    """A moment of Opus in each of several streams."""
    tags = b"OpusTags" + struct.pack("<I", 1) + b"x" + struct.pack("<I", 0)
    packets = [(OPUS, 0, 2), (tags, 0, 0), (b"\xf8\xff\xfe", 960, 4)]
    return b"".join(page(one, n, at, f, packet) for n, (packet, at, f) in enumerate(packets) for one in range(count))
