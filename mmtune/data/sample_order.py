"""Which sample stands where in an epoch: a function of (seed, epoch, position) and of the samples; where an order has a
state, of that state as the epoch began, too.

Shards are put in an order for the epoch, by a hash of their names. Then the samples of a few neighbouring shards, or of
all, are put in order together, as an entry of `mmtune.data.orders` says. The number of readers changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmtune.data._hash import hash_text
from mmtune.data.orders.base import Order, Samples

WINDOWS = 3
"""Most windows of samples that are held in order."""
EPOCHS = 4
"""Most epochs whose order of shards is held."""


class SampleKey(NamedTuple):
    """A sample of a corpus: number of its shard and index in that shard."""

    shard: int
    index: int


class SampleOrder:
    """Positions of a corpus.

    Args:
        labels, sizes: name and number of samples of each shard.
        window: shards whose samples are put in order together.
        load: the samples of a shard, by its number: indexes in the shard, int64 [n], and what an order may know.
    """

    def __init__(
        self,
        order: Order,
        labels: Sequence[str],
        sizes: np.ndarray,
        window: int,
        load: Callable[[int], tuple[np.ndarray, Samples]],
    ) -> None:
        self._order, self._labels, self._sizes, self._load = order, labels, sizes, load
        self.stateful, self.even = order.stateful, order.even
        self._begun = 0
        self._window = len(labels) if order.whole else window
        self._epochs: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def begin(self, epoch: int, measures: Mapping[str, float]) -> None:
        """An epoch begins, unless it has begun already; see `Order.begin_epoch`."""
        if self.stateful and epoch > self._begun:
            self._order.begin_epoch(epoch, measures)
            self._begun = epoch
            self._windows.clear()

    def state(self) -> dict[str, Any]:
        """The epoch that has begun, and what the order remembers in it: plain values."""
        return {"epoch": self._begun, "order": self._order.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        if state != self.state():
            self._begun = state["epoch"]
            self._order.load(state["order"])
            self._windows.clear()

    def at(self, seed: int, epoch: int, position: int) -> SampleKey:
        """The sample at `position` (0 to n - 1) of an epoch. Every epoch holds every sample once."""
        if not 0 <= position < int(self._sizes.sum()):
            raise IndexError(f"position {position} of {self._sizes.sum()} samples")
        shards, ends = self._epoch(seed, epoch)
        block = int(np.searchsorted(ends, position, side="right"))
        start = int(ends[block - 1]) if block else 0
        numbers, indexes = self._mixed(seed, epoch, block, shards)
        return SampleKey(int(numbers[position - start]), int(indexes[position - start]))

    def _epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the shards [shards], and the position after each window [windows]."""
        name = (seed, epoch)
        if name not in self._epochs:
            keys = np.array([hash_text(f"{seed} {epoch} {label}") for label in self._labels], dtype=np.uint64)
            shards = np.argsort(keys, kind="stable")
            starts = np.arange(0, len(shards), self._window)
            _keep(self._epochs, name, (shards, np.cumsum(np.add.reduceat(self._sizes[shards], starts))), EPOCHS)
        return self._epochs[name]

    def _mixed(self, seed: int, epoch: int, block: int, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shards and indexes of the samples of one window, in their order."""
        name = (seed, epoch, block)
        if name not in self._windows:
            members = shards[block * self._window : (block + 1) * self._window]
            loaded = [self._load(int(number)) for number in members]
            numbers = np.repeat(members, [len(indexes) for indexes, _ in loaded])
            indexes = np.concatenate([indexes for indexes, _ in loaded])
            ranks = self._order.sorted(_joined([samples for _, samples in loaded]), seed, epoch)
            _keep(self._windows, name, (numbers[ranks], indexes[ranks]), WINDOWS)
        self._windows.move_to_end(name)
        return self._windows[name]


def _joined(parts: Sequence[Samples]) -> Samples:
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Samples(np.concatenate([part.hashes for part in parts]), columns, parts[0].row)


def _keep(held: OrderedDict[Any, Any], name: tuple[int, ...], value: Any, most: int) -> None:
    held[name] = value
    while len(held) > most:
        held.popitem(last=False)
