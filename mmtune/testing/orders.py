"""Checks of orders: each sample once in an epoch, by the samples, the seed and the epoch, and by nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import numpy as np

from mmtune.data.orders.base import Order, OrderConfig, Samples

SIZES = (200, 1, 0)
"""Samples that are put in order together."""
EPOCHS = ((0, 0), (0, 1), (7, 0))
"""Seeds and epochs."""


def make(cls: type[Order], settings: OrderConfig) -> Order:
    """An order."""
    return cls(settings)


def samples(order: Order, n: int) -> Samples:
    """Samples with all columns that an order reads: whole numbers, many of them equal, some missing."""
    drawn = np.random.default_rng(n)
    columns = {name: drawn.integers(1, 60, n).astype(np.float64) for name in order.columns}
    for column in columns.values():
        column[::9] = np.nan
    return Samples(drawn.integers(0, 2**64, n, dtype=np.uint64), columns, row=64)


def _cases(order: Order) -> Iterator[tuple[Samples, int, int]]:
    return ((samples(order, n), seed, epoch) for n in SIZES for seed, epoch in EPOCHS)


def keys_are_numbers(order: Order) -> None:
    """One for each sample in every key; columns are named by texts."""
    assert all(isinstance(name, str) and name for name in order.columns), f"columns {order.columns!r}"
    for given, seed, epoch in _cases(order):
        keys = order.keys(given, seed, epoch)
        assert isinstance(keys, list | tuple), f"a list of keys is wanted, and `keys` gives one {type(keys).__name__}"
        for key in keys:
            assert isinstance(key, np.ndarray), f"a key is an array of numpy, and not a {type(key).__name__}"
            assert key.dtype.kind in "iufb", f"a key of {key.dtype}"
            assert key.shape == (len(given),), f"a key of {list(key.shape)} for {len(given)} samples"


def every_sample_comes_once(order: Order) -> None:
    """An epoch is a permutation, samples without a number included."""
    for given, seed, epoch in _cases(order):
        found = sorted(order.sorted(given, seed, epoch).tolist())
        assert found == list(range(len(given))), f"{len(given)} samples, and {len(set(found))} of them came"


def the_same_each_time(order: Order) -> None:
    """What was asked before, another object, or random numbers of the process change nothing; nor are the columns
    changed."""
    again = type(order)(order.config)
    for given, seed, epoch in _cases(order):
        before = {name: column.copy() for name, column in given.columns.items()}
        random.seed(1), np.random.seed(1)
        first = order.sorted(given, seed, epoch).tolist()
        random.seed(2), np.random.seed(2)
        order.sorted(given, seed + 1, epoch + 1)
        assert again.sorted(given, seed, epoch).tolist() == first, "another object gives another order"
        assert order.sorted(given, seed, epoch).tolist() == first, "another order the second time"
        for name, column in before.items():
            assert np.array_equal(given.columns[name], column, equal_nan=True), f"the column {name} was changed"


def listing_changes_nothing(order: Order) -> None:
    """The order in which samples are listed, which is that of the shards, has no say."""
    for given, seed, epoch in _cases(order):
        moved = np.random.default_rng(3).permutation(len(given))
        columns = {name: column[moved] for name, column in given.columns.items()}
        other = Samples(given.hashes[moved], columns, given.row)
        straight = given.hashes[order.sorted(given, seed, epoch)]
        turned = other.hashes[order.sorted(other, seed, epoch)]
        assert np.array_equal(straight, turned), "another order for the same samples, listed otherwise"


def state_changes_when_an_epoch_begins_only(order: Order) -> None:
    """It is plain values; being asked changes nothing; another object that takes it back gives the same order. An order
    that says it has none has none."""
    order = type(order)(order.config)
    named = [value for value in order.config.model_dump().values() if isinstance(value, str)]
    for epoch, share in enumerate((0.3, 0.95), 1):
        order.begin_epoch(epoch, dict.fromkeys(named, share))
        state = order.state()
        assert json.loads(json.dumps(state)) == state, f"a state that JSON changes: {state!r}"
        assert order.stateful or not state, f"a state, {state!r}, of an order that is not `stateful`"
        again = type(order)(order.config)
        again.load(state)
        for given, seed, _ in _cases(order):
            assert np.array_equal(order.sorted(given, seed, epoch), again.sorted(given, seed, epoch)), "not taken back"
        assert order.state() == state, "another state after it was asked for an order"


CHECKS = (
    keys_are_numbers,
    every_sample_comes_once,
    the_same_each_time,
    listing_changes_nothing,
    state_changes_when_an_epoch_begins_only,
)
