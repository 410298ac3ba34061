"""The packets of a stream in decoding order: a mark of each, and the packets themselves while they are few.

A packet takes several hundred bytes beside its own, and a film of hours has hundreds of thousands. So more than a few
are let go, and those that are decoded are read again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from mmtune.media import _gops

_FEW = 1 << 16
"""Packets that are kept: half an hour of film."""
_LIGHT = 1 << 28
"""Bytes of packets that are kept."""
_NONE = -(1 << 63)
"""Stands for no time, as in the library."""


class Packets:
    """What is known of every packet of a stream.

    Args:
        source: the packets.
        again: gives the same packets once more.
        codec: name of their codec.
        split: finds the units in a packet of H.264; none for other codecs.

    Attributes:
        pts, dts, durations: of each packet, in units of the stream; `known` tells of its times whether there are any.
        shown: numbers of the packets whose frames come on screen.
        enters: numbers of the packets at which decoding can begin.
    """

    def __init__(
        self,
        source: Iterable[Any],
        again: Callable[[], AbstractContextManager[Iterator[Any]]],
        codec: str,
        split: _gops.Splitter | None,
    ) -> None:
        self.pts, self.dts, self.durations = array("q"), array("q"), array("q")
        self.shown, self.enters = array("q"), array("q")
        self._again = again
        self._kept: list[Any] | None = []
        size = 0
        for number, packet in enumerate(source):
            self.pts.append(_NONE if packet.pts is None else packet.pts)
            self.dts.append(_NONE if packet.dts is None else packet.dts)
            self.durations.append(packet.duration or 0)
            if not packet.is_discard and not (codec == "vp8" and _hidden_vp8(packet)):
                self.shown.append(number)
            if packet.is_keyframe and (split is None or _gops.has_idr(packet, split)):
                self.enters.append(number)
            size += packet.size
            if self._kept is not None:
                self._kept.append(packet)
                if number >= _FEW or size > _LIGHT:
                    self._kept = None

    def __len__(self) -> int:
        return len(self.pts)

    def known(self, times: Sequence[int]) -> int:
        """How many of some times there are."""
        return sum(time != _NONE for time in times)

    def parts(self, spans: Sequence[tuple[int, int]]) -> Iterator[Iterator[Any]]:
        """The packets of each span (first and last number), rising; each to be used up before the next."""
        if self._kept is not None:
            yield from (iter(self._kept[first : last + 1]) for first, last in spans)
            return
        with self._again() as source:
            at = 0
            for first, last in spans:
                yield islice(source, first - at, last + 1 - at)
                at = last + 1


def _hidden_vp8(packet: Any) -> bool:
    """VP8 sends pictures that are only predicted from, never shown."""
    return not memoryview(packet)[0] >> 4 & 1
