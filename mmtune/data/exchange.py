"""Samples shared out among ranks: each prepares every n-th one, tells the others how long it is, and hands it over.

Which samples are in which row follows from their lengths and from which of them cannot be used, so every rank has to
know that of every sample, but nothing more: rank r prepares positions r, r + world, r + 2 * world, ... of a stream,
tells what came of them, and once the rows are laid each example goes to the rank that has its row. Steps are the same
for any number of ranks, and each rank decodes its share. The price: prepared examples travel between ranks, once.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmtune.data import _serialize
from mmtune.errors import Note
from mmtune.types import Example


class Peers(Protocol):
    """The ranks of a run. Every rank calls these in the same order."""

    rank: int
    world: int

    def all_gather(self, data: bytes) -> list[bytes]:
        """The data of all ranks, in their order."""
        ...

    def all_to_all(self, parts: Sequence[bytes]) -> list[bytes]:
        """A part for each rank; gives what each rank had for this one."""
        ...


@dataclass(frozen=True)
class Notice:
    """An example that some rank has prepared."""

    id: str
    length: int
    position: int
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return self.length


class SharedPreparation:
    """The samples of one stream from a position on, prepared by all ranks together.

    Args:
        ask: have a position prepared, some time before it is fetched.
        fetch: what came of it: an example, or the values of a `Skip`.
        ahead: positions of this rank that are asked for beforehand.
        usual: samples that a step is likely to take, to begin with.
        until: position to the one before which samples may be prepared from there on.
    """

    def __init__(
        self,
        position: int,
        peers: Peers,
        ask: Callable[[int], Any],
        fetch: Callable[[Any], Example | dict[str, Any]],
        ahead: int,
        usual: int,
        until: Callable[[int], int] = lambda position: sys.maxsize,
    ) -> None:
        self.position, self._peers, self._ask, self._fetch, self._until = position, peers, ask, fetch, until
        self._told: deque[Notice | dict[str, Any]] = deque()
        self._held: dict[int, Example] = {}
        self._next = position + (peers.rank - position) % peers.world
        """First position of this rank that is not fetched yet."""
        self._asked: deque[Any] = deque()
        self._ahead, self._usual, self._taken = ahead, max(1, usual), 0

    def peek(self) -> Notice | dict[str, Any]:
        """What is known of the sample at `position`: its length, or the values of a `Skip`."""
        if not self._told:
            self._round()
        return self._told[0]

    def advance(self) -> None:
        """Go on to the next."""
        self._told.popleft()
        self.position += 1
        self._taken += 1

    def _round(self) -> None:
        """Each rank prepares as many as the step may still need, and every rank gets the notices of all."""
        peers = self._peers
        each = max(1, -(-(self._usual - self._taken) // peers.world))
        until = self._until(self.position)
        end = min(self.position + each * peers.world, until)
        mine = []
        while self._next < end:
            while len(self._asked) <= self._ahead:
                if self._asked and self._next + len(self._asked) * peers.world >= until:
                    break
                self._asked.append(self._ask(self._next + len(self._asked) * peers.world))
            made = self._fetch(self._asked.popleft())
            if isinstance(made, Example):
                self._held[self._next] = made
                mine.append([self._next, made.id, len(made), made.notes])
            else:
                mine.append([self._next, made, 0, ()])
            self._next += peers.world
        heard = [line for data in peers.all_gather(json.dumps(mine).encode()) for line in json.loads(data)]
        for position, made, length, notes in sorted(heard, key=lambda line: line[0]):
            told = made if isinstance(made, dict) else Notice(made, length, position, tuple(map(Note, notes)))
            self._told.append(told)

    def collect(self, notices: Sequence[Notice], owners: Sequence[int]) -> dict[int, Example]:
        """The examples of a step that belong to this rank, by index in `notices`.

        Args:
            owners: rank of each.
        """
        peers = self._peers
        self._usual, self._taken = max(1, len(notices)), 0
        have: dict[int, Example] = {}
        parts: list[list[bytes]] = [[] for _ in range(peers.world)]
        for index, (notice, owner) in enumerate(zip(notices, owners, strict=True)):
            if notice.position % peers.world != peers.rank:
                continue
            example = self._held.pop(notice.position)
            if owner == peers.rank:
                have[index] = example
            else:
                data = _serialize.dump(*_serialize.pack(example))
                parts[owner] += [index.to_bytes(8, "little"), len(data).to_bytes(8, "little"), data]
        for data in peers.all_to_all([b"".join(part) for part in parts]):
            start = 0
            while start < len(data):
                index, size = (int.from_bytes(data[start + at : start + at + 8], "little") for at in (0, 8))
                have[index] = _serialize.unpack(*_serialize.load(data[start + 16 : start + 16 + size]))
                start += 16 + size
        return have
