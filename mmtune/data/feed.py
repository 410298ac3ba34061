"""The samples of one stream from a position on, as a loader takes them: prepared here, by workers, or by all ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mmtune.data import _serialize
from mmtune.data.exchange import Notice, SharedPreparation
from mmtune.types import Example

if TYPE_CHECKING:
    from mmtune.data.loader import Loader


@dataclass(frozen=True)
class Skip:
    """A sample that could not be used."""

    id: str
    shard: str
    member: str
    reason: str
    detail: str


class Feed:
    """The samples of one stream from a position on, asked for ahead of time."""

    def __init__(self, loader: Loader, name: str, position: int, depth: int) -> None:
        self.name, self.position = name, position
        self._loader, self._depth = loader, depth
        self._count = len(loader.streams[name].corpus)
        self._asked: deque[int] = deque()
        self._head: Example | Skip | None = None

    @property
    def epoch(self) -> int:
        return self.position // self._count

    def peek(self) -> Example | Skip:
        """The sample at `position`."""
        if self._head is None:
            pool, until = self._loader.pool, self._loader.until(self.name, self.position)
            if pool is None:
                self._head = self._loader.make(self.name, self.position)
            else:
                self._ask(self.position, min(self._depth, until - self.position))
                message = pool.get(self._asked.popleft())
                self._ask(self.position + 1, min(self._depth, until - self.position - 1))
                self._head = made(message)
        return self._head

    def _ask(self, first: int, count: int) -> None:
        """Have so many samples from `first` on prepared, those that were asked for already among them."""
        while len(self._asked) < count:
            self._asked.append(self._loader.put(self.name, first + len(self._asked)))

    def advance(self) -> None:
        """Go on to the next."""
        self._head = None
        self.position += 1

    def collect(self, found: Sequence[Example], owners: Sequence[int]) -> dict[int, Example]:
        """The examples of a step by place; other ranks' are here too."""
        return dict(enumerate(found))


class SharedFeed(SharedPreparation):
    """The same, prepared by all ranks together."""

    def __init__(self, loader: Loader, name: str, position: int, depth: int) -> None:
        pool = loader.pool
        ask = (lambda position: position) if pool is None else (lambda position: loader.put(name, position))
        # every rank has workers of its own
        until = partial(loader.until, name)
        super().__init__(position, loader.peers, ask, self._fetch, depth, loader.specs[name].all_rows, until)
        self.name, self._loader, self._pool, self._count = name, loader, pool, len(loader.streams[name].corpus)

    @property
    def epoch(self) -> int:
        return self.position // self._count

    def peek(self) -> Notice | Skip:
        found = super().peek()
        return Skip(**found) if isinstance(found, dict) else found

    def _fetch(self, asked: int) -> Example | dict[str, Any]:
        found = self._loader.make(self.name, asked) if self._pool is None else made(self._pool.get(asked))
        return vars(found) if isinstance(found, Skip) else found


def made(message: bytes) -> Example | Skip:
    """What a worker sent: the inverse of `Loader.work`."""
    head, data, start = _serialize.load(message)
    return Skip(**head["skip"]) if "skip" in head else _serialize.unpack(head, data, start)
