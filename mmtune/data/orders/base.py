"""The contract of orders: what the samples of a stream are sorted by. One file of this room is one order.

An epoch is a permutation of the samples: each comes once, so where a run stands stays one number for each stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mmtune.config import Config
from mmtune.data._hash import hash_text, mix

TOKENS = "tokens"
"""The column that is measured and not read: how many tokens a sample has as the stream trains on it."""


class OrderConfig(Config):
    """What every order's config has."""

    name: str
    """Name of the order: its file in this room, or package.module:Class."""


@dataclass(frozen=True)
class Samples:
    """Samples that are put in order together: those of a few neighbouring shards, or all."""

    hashes: np.ndarray
    """uint64 [n]: a number by the name of each sample."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name to float64 [n], NaN for a sample that has no such number."""
    row: int | None = None
    """Most tokens of a row, where that is known."""

    def __len__(self) -> int:
        return len(self.hashes)

    def drawn(self, seed: int, epoch: int) -> np.ndarray:
        """uint64 [n]: a number drawn for each sample in this epoch, whatever other samples there are."""
        return mix(self.hashes ^ np.uint64(hash_text(f"{seed} {epoch}")))


class Order(ABC):
    """What samples are sorted by: a function of the samples, the seed, the epoch, and what is known as it begins."""

    Config: ClassVar[type[OrderConfig]] = OrderConfig
    whole: ClassVar[bool] = False
    """Whether all samples of a stream are sorted together. If not, the samples of a few neighbouring shards are, the
    shards in an order of their own for each epoch: reading stays nearly sequential, and memory is that of one window.
    """
    even: ClassVar[bool] = False
    """Whether the first samples of an epoch are like all others, so that they alone say how many a step takes."""

    stateful: ClassVar[bool] = False
    """Whether it remembers something from one epoch to the next, see `begin_epoch`. No sample of an epoch is prepared
    before the one before has ended."""

    def __init__(self, config: OrderConfig) -> None:
        self.config = config

    @property
    def columns(self) -> tuple[str, ...]:
        """Numbers of a sample that `keys` reads: `tokens`, which is measured, or the path of a number in the record's
        .json, as `difficulty` or `scores.clip`. They are read once and kept beside the shards."""
        return ()

    @property
    def measures(self) -> tuple[str, ...]:
        """What `begin_epoch` asks of validations. A run that does not measure it is refused before its first step."""
        return ()

    @abstractmethod
    def keys(self, samples: Samples, seed: int, epoch: int) -> Sequence[np.ndarray]:
        """Numbers [n] to sort by, ascending, the most significant first; NaN comes last.

        What is equal in all of them, or with no keys everything, comes in the order of `samples.drawn`. The order must
        not depend on the order in which the samples are listed.
        """

    def begin_epoch(self, epoch: int, measures: Mapping[str, float]) -> None:  # noqa: B027
        """Called once before the first sample of an epoch but the first, on every rank, if the order is `stateful`: the
        only place where its state may change.

        Args:
            measures: what the last validation found, as `loss` or `TASK/MEASURE`; empty before there was one.
        """

    def state(self) -> dict[str, Any]:
        """What it remembers, as plain values; saved with the run."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what `state` gave."""

    def sorted(self, samples: Samples, seed: int, epoch: int) -> np.ndarray:
        """int64 [n]: which sample comes first, second, ..."""
        return np.lexsort((samples.drawn(seed, epoch), *reversed(list(self.keys(samples, seed, epoch)))))


Contract = Order
