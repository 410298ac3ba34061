"""MP4 boxes, counted before a library opens the file: it makes an entry of every sample that a table promises.

Tables say "thirty million samples of one size" in twenty bytes. What they promise is compared with the limit of packets
and, where samples have a size, against the bytes of the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from mmtune.errors import MediaError, Reason
from mmtune.media import _tags
from mmtune.media._limits import Limits

_HOLDERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex"})
_DEEP = 12
_BOXES = 200_000
"""Most boxes that are read; a fragmented film of four hours has some thirty thousand."""
_EDITS = 4_000_000
"""Edits of a track times its samples: each edit may show all of them again."""
_TRACKS = 4
"""Tracks that may have as many samples as one may: of all tracks so many are counted together."""
_PLACES = 1_000_000
"""Fragments times tracks: the library keeps some 60 bytes of each fragment for each track."""
_TEXTS = frozenset({b"udta", b"ilst", b"keys"})
"""Boxes with a text in each box inside."""
_KEYS = 100
"""Boxes of texts that a box of keys to encrypted samples counts as: the library copies all at each of them."""
_HEADER = 16 << 20
"""Most bytes that a packed header may become."""


class _Walk:
    """What all boxes together promise."""

    def __init__(self, limits: Limits, reason: Reason, origin: str, size: int) -> None:
        self.limits, self.reason, self.origin, self.size = limits, reason, origin, size
        self.boxes = self.fragments = self.texts = self.tracks = self.pieces = self.all = 0
        self.samples = self.edits = 0
        self.sound = False

    def refuse(self, seen: str) -> None:
        raise self.limits.refusal("packets", self.reason, f"{self.origin}: its tables promise {seen}")

    def walk(self, data: memoryview, deep: int = 0, texts: bool = False) -> None:
        for name, body in _boxes(data):
            self.texts += texts
            if self.texts > _tags.MOST:
                raise _tags.refusal(self.texts, self.reason, self.origin)
            self.boxes += 1
            if self.boxes > _BOXES:
                self.refuse(f"more than {_BOXES} boxes")
            self.tracks += name == b"trak"
            self.pieces += 1 if name == b"moof" else _references(body) if name == b"sidx" else 0
            if self.tracks * self.pieces > _PLACES:
                self.refuse(f"{self.pieces} fragments of {self.tracks} tracks")
            if name == b"trak":
                self.samples = self.edits = 0
                self.sound = False
            if name == b"cmov" and deep < _DEEP:
                self.walk(memoryview(_unpacked(body, self)), deep + 1)
            elif name == b"meta" and deep < _DEEP:
                self.walk(body if body[4:8] == b"hdlr" else body[4:], deep + 1)
            elif name in _TEXTS and deep < _DEEP:
                self.walk(body[8:] if name == b"keys" else body, deep + 1, texts=True)
            elif name in _HOLDERS and deep < _DEEP:
                self.walk(body, deep + 1)
            elif (look := getattr(self, f"_{name.decode('latin1')}", None)) and len(body) >= 8:
                look(body)
            if self.samples * self.edits > _EDITS:
                self.refuse(f"{self.samples} samples in {self.edits} edits")

    def _hdlr(self, body: memoryview) -> None:
        self.sound = self.sound or bytes(body[8:12]) == b"soun"  # QuickTime has another one beside it

    def _pssh(self, body: memoryview) -> None:
        self.texts += _KEYS

    def _stsz(self, body: memoryview) -> None:
        size, count = _number(body, 4), _number(body, 8)
        if size and count * size > self.size:
            self.refuse(f"{count} samples of {size} bytes in a file of {self.size}")
        # plain sound is stored as millions of samples that are read in blocks
        self._table(0 if size and self.sound else count)

    def _stz2(self, body: memoryview) -> None:
        self._table(_number(body, 8))

    def _table(self, samples: int) -> None:
        self.samples, self.all = samples, self.all + samples
        self._count(samples)
        if self.all > _TRACKS * self.limits.packets:
            self.refuse(f"{self.all} samples in {self.tracks} tracks")

    def _runs(self, body: memoryview, entry: int) -> None:
        """A table of (how many samples, what they have in common)."""
        total = 0
        for index in range(min(_number(body, 4), max(0, len(body) - 8) // entry)):
            total += _number(body, 8 + index * entry)
            if total > self.size and total > self.limits.packets:
                self.refuse(f"more than {total} samples")
        if not self.sound:
            self._count(total)

    def _stts(self, body: memoryview) -> None:
        self._runs(body, 8)

    def _ctts(self, body: memoryview) -> None:
        self._runs(body, 8)

    def _elst(self, body: memoryview) -> None:
        self.edits = min(_number(body, 4), len(body) // 12)

    def _trun(self, body: memoryview) -> None:
        self.fragments += _number(body, 4)
        self._count(self.fragments)

    def _count(self, samples: int) -> None:
        if samples > self.limits.packets:
            self.refuse(f"{samples} samples")


def check(data: bytes, limits: Limits, reason: Reason, origin: str) -> None:
    """Refuse what the tables of an MP4 cannot hold. Raises MediaError with `reason`, or that of a damaged file."""
    _Walk(limits, reason, origin, len(data)).walk(memoryview(data))


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(data):
        size, head = _number(data, at), 8
        if size == 1 and at + 16 <= len(data):
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = len(data) if size == 0 else at + size
        if size and size < head:
            return
        yield bytes(data[at + 4 : at + 8]), data[at + head : min(end, len(data))]
        at = end


def _number(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _references(body: memoryview) -> int:
    """Fragments that an index of them names."""
    at = 30 if body[:1] == b"\x01" else 22
    return min(int.from_bytes(body[at : at + 2], "big"), max(0, len(body) - at) // 12)


def _unpacked(body: memoryview, walk: _Walk) -> bytes:
    """The boxes of a header that is packed with zlib, as old QuickTime films have it."""
    for name, packed in _boxes(body):
        if name == b"cmvd":
            size = _number(packed, 0)
            if size > _HEADER:
                raise MediaError(
                    walk.reason, f"{walk.origin}: a header packed from {size} bytes", f"at most {_HEADER}", "convert it"
                )
            try:
                return zlib.decompressobj().decompress(packed[4:], _HEADER)
            except zlib.error:
                return b""
    return b""
