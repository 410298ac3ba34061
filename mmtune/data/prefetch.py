"""Samples of a stream at given positions, prepared by the loader's number of workers, outside of any step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice

from mmtune.data.loader import AHEAD, Loader, Skip, made
from mmtune.data.pool import Pool
from mmtune.types import Example


def prepared(loader: Loader, name: str, positions: Iterable[int]) -> Iterator[Example | Skip]:
    """The samples in the order of their positions, or why they cannot be used. Nothing is written into the ledger.

    Raises MmtuneError: a worker died.
    """
    if not loader.workers:
        yield from (loader.make(name, position) for position in positions)
        return
    rest = iter(positions)
    with closing(Pool(loader.work, loader.workers, loader.task)) as pool:
        asked = deque(pool.put(name, position) for position in islice(rest, loader.workers * AHEAD))
        while asked:
            found = made(pool.get(asked.popleft()))
            asked.extend(pool.put(name, position) for position in islice(rest, 1))
            yield found
