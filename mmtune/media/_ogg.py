"""When the packets of an OGG with Opus are due: pages say where they end, and the library counts past gaps.

A page's position is that of its last packet's end. Where it is later than the packets before it and in it add up
to, nothing was sent for a while: after a packet in it with which an encoder says that it falls silent, else before the
page (RFC 7845, 4.1). FFmpeg closes a page by the clock, by default after a second, so that the first packet after a
longer gap closes its page: such a page lasts longer than any holds, but holds less. Where else in a page a gap was, the
file does not say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from mmtune.media._track import LATE

ABRUPT = 60.0
"""A sound without pictures that begins later than this, seconds, is a piece of a longer stream and begins at once."""
_NONE = (1 << 64) - 1
_MOST = 1_000_000
"""Packets; of a sound of more, five hours of the usual ones, gaps are where the library counts them."""
_QUIET = 2
"""Bytes of a packet that says that nothing follows for a while."""
_TENTHS = (100, 200, 400, 600)  # of SILK frames, in 0.1 ms; hybrid and CELT frames are shorter


@dataclass
class Page:
    position: int
    packets: list[tuple[int, int]] = field(default_factory=list)
    """Bytes and samples of each packet that ends here."""

    @property
    def length(self) -> int:
        """Samples of all of them."""
        return sum(samples for _, samples in self.packets)


def opus_starts(data: bytes) -> list[tuple[int, int]]:
    """Bytes of each packet of sound, and the sample at 48000 Hz at which it begins.

    Empty where there is more than one stream, or none of Opus. A piece of a longer stream begins at 0.
    """
    return starts(_pages(data) or [])


def starts(pages: list[Page]) -> list[tuple[int, int]]:
    """Bytes and first sample of every packet of some pages."""
    found: list[tuple[int, int]] = []
    at = skipped = 0
    clocked = _closed_by_clock(pages)
    for page in pages:
        gap = max(0, page.position - skipped - page.length - at) if page.position != _NONE else 0
        if not found and not LATE < gap / 48000 <= ABRUPT:
            skipped, gap = gap, 0
        quiet = [index for index, (size, _) in enumerate(page.packets) if size <= _QUIET]
        before = quiet[-1] + 1 if quiet else len(page.packets) - 1 if found and gap > clocked else 0
        for index, (size, samples) in enumerate(page.packets):
            at += gap if index == before else 0
            found.append((size, at))
            at += samples
        at += gap if before == len(page.packets) else 0
    return found


def _closed_by_clock(pages: list[Page]) -> float:
    """Samples of a gap above which the packet after it closes its page; infinite where pages are not closed so."""
    full = max((page.length for page in pages), default=0)
    for before, page in pairwise(pages):
        lasts = page.position - before.position - page.packets[-1][1]
        if page.position != _NONE != before.position and page.length < full < lasts:
            return full
    return math.inf


def _pages(data: bytes) -> list[Page] | None:
    """The pages after the two packets of the header; none for anything but one stream of Opus of at most so many
    packets."""
    pages: list[Page] = []
    packets = 0
    at, serial, skip, part, begin = 0, None, 2, 0, b""
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        table = data[at + 27 : at + 27 + data[at + 26]]
        body = at + 27 + len(table)
        if serial is None:
            serial = data[at + 14 : at + 18]
            if not data.startswith(b"OpusHead", body):
                return None
        if data[at + 14 : at + 18] != serial:
            return None
        packets += len(table)
        if packets > _MOST:
            return None
        page = Page(int.from_bytes(data[at + 6 : at + 14], "little"))
        for size in table:
            begin = begin or data[body : body + min(2, size)]
            part, body = part + size, body + size
            if size < 255:
                if skip:
                    skip -= 1
                else:
                    page.packets.append((part, _samples(begin)))
                part, begin = 0, b""
        if page.packets:
            pages.append(page)
        at = body
    return pages


def _samples(begin: bytes) -> int:
    """Samples of a packet at 48000 Hz, by its first two bytes (RFC 6716, 3.1)."""
    if not begin:
        return 0
    config, code = begin[0] >> 3, begin[0] & 3
    if config < 12:
        tenths = _TENTHS[config & 3]
    elif config < 16:
        tenths = 100 << (config & 1)
    else:
        tenths = 25 << (config & 3)
    frames = 1 if code == 0 else 2 if code < 3 else begin[1] & 63 if len(begin) > 1 else 0
    return tenths * frames * 48 // 10
