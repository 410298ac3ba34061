"""Which packets are decoded: the last entry point before a chosen frame, nothing after it, nothing unread by others."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from mmtune.media import _gops, _packets
from mmtune.media._packets import Packets

AVCC = bytes([1, 100, 0, 30, 0xFF])
IDR, READ, UNREAD = 0x65, 0x41, 0x01  # first bytes of H.264 units; the last one has nal_ref_idc 0


class Packet(bytes):
    """Encoded bytes with what a demuxer says of them."""

    pts: int
    dts = duration = None
    is_keyframe: bool
    is_discard = False

    @property
    def size(self) -> int:
        return len(self)

    @classmethod
    def of(cls, pts: int, key: bool = False, *units: int, prefix: bool = True) -> Packet:
        body = b"".join((b"\x00\x00\x00\x02" if prefix else b"\x00\x00\x01") + bytes([unit, 7]) for unit in units)
        packet = cls(body)
        packet.pts, packet.is_keyframe = pts, key
        return packet


def planned(packets: list[Packet], chosen: set[int], codec: str = "hevc", extradata: bytes | None = None) -> list:
    split = _gops.nal_splitter(extradata) if codec == "h264" else None
    known = Packets(packets, lambda: nullcontext(iter(packets)), codec, split)
    runs = known.parts(_gops.spans(known.pts, known.enters, chosen, codec))
    return [[packet.pts for packet in run if _gops.needed(packet, chosen, split)] for run in runs]


@pytest.fixture(params=["kept", "read again"], autouse=True)
def _few(request, monkeypatch):
    """Packets are kept where they are few, and else read again: what is decoded is the same."""
    if request.param == "read again":
        monkeypatch.setattr(_packets, "_FEW", 0)


CLOSED = [Packet.of(pts, key=pts % 4 == 0) for pts in range(12)]


def test_from_the_entry_point_to_the_frame():
    assert planned(CLOSED, {6}) == [[4, 5, 6]]
    assert planned(CLOSED, {1, 10}) == [[0, 1], [8, 9, 10]]
    assert planned(CLOSED, {1, 3, 4}) == [[0, 1, 2, 3], [4]]
    assert planned(CLOSED, set()) == []


def test_a_picture_shown_before_its_entry_point_leans_on_the_group_before():
    # decoding order; 3 and 4 are shown before the entry point 5 and need 2
    packets = [Packet.of(pts, key=pts in (0, 5)) for pts in (0, 1, 2, 5, 3, 4, 6)]
    assert planned(packets, {4}) == [[0, 1, 2, 5, 3, 4]]
    assert planned(packets, {6}) == [[5, 3, 4, 6]]
    assert planned(packets, {4, 6}) == [[0, 1, 2, 5, 3, 4, 6]]


def test_a_stream_that_does_not_begin_with_an_entry_point_is_decoded_from_its_beginning():
    assert planned([Packet.of(0), Packet.of(1), Packet.of(2, key=True)], {1}) == [[0, 1]]


def test_a_gif_is_drawn_from_the_beginning():
    assert planned(CLOSED, {9}, codec="gif") == [list(range(10))]


@pytest.mark.parametrize("prefix", [True, False])
def test_h264_enters_only_where_nothing_before_is_read_and_drops_what_nobody_reads(prefix):
    extradata = AVCC if prefix else None
    packets = [
        Packet.of(0, True, 0x67, 0x68, IDR, prefix=prefix),
        Packet.of(2, False, READ, prefix=prefix),
        Packet.of(1, False, UNREAD, prefix=prefix),
        Packet.of(3, True, READ, prefix=prefix),  # called a key, but an ordinary picture
        Packet.of(5, False, READ, prefix=prefix),
        Packet.of(4, False, UNREAD, UNREAD, prefix=prefix),
        Packet.of(6, False, UNREAD, READ, prefix=prefix),
    ]
    assert planned(packets, {5}, "h264", extradata) == [[0, 2, 3, 5]]
    assert planned(packets, {4}, "h264", extradata) == [[0, 2, 3, 5, 4]]
    assert planned(packets, {1, 6}, "h264", extradata) == [[0, 2, 1, 3, 5, 6]]
    assert planned(packets, {5}, "hevc", extradata) == [[3, 5]]


def test_a_broken_unit_length_ends_the_search():
    assert list(_gops.nal_splitter(AVCC)(memoryview(b"\xff\xff\xff\xff\x41\x07"))) == [0x41]
    assert list(_gops.nal_splitter(AVCC)(memoryview(b"\x00\x00"))) == []
