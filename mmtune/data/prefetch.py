"""Samples of a stream at given positions, prepared by the loader's number of workers, outside of any step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

from mmtune.data.feed import Skip, made
from mmtune.data.loader import Loader
from mmtune.data.pool import mapped
from mmtune.types import Example


def prepared(loader: Loader, name: str, positions: Iterable[int]) -> Iterator[Example | Skip]:
    """The samples in the order of their positions, or why they cannot be used. Nothing is written into the ledger.

    Raises MmtuneError: a worker died.
    """
    if loader.workers:
        tasks = ((name, position) for position in positions)
        with closing(mapped(loader.work, tasks, loader.workers, loader.task)) as messages:
            yield from map(made, messages)
    else:
        yield from (loader.make(name, position) for position in positions)
