"""Samples whose lengths add up to full rows stand together, so less of a batch is padding.

Rows hold whole samples, and a step ends with the first one that does not fit. At random the rest of a row stays empty
when that one is long: a tenth of a batch of few rows. Here samples are drawn at random into megabatches, each is packed
into rows (best fit decreasing, as in Johnson 1974), and the rows come at random. Samples of one length next to each
other, as the megabatches of `transformers` have them, are for rows that hold one sample; packed rows get emptier by it,
for nothing short is left to stand beside what is long. `tools/bench order` measures all three.

The price: lengths are known when every sample was prepared once, media included. That is done by the data workers when
a run first begins with this data and kept beside the shards.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from mmtune.data.orders.base import TOKENS, Order, OrderConfig, Samples


class Config(OrderConfig):
    megabatch: Annotated[int, Field(ge=2, le=2**20)] = 512
    """Samples that rows are made of together: more of them fill rows better, and are longer in one company."""


class LengthGrouped(Order):
    """Full rows, in an order drawn for each epoch."""

    Config = Config
    config: Config
    even = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (TOKENS,)

    def keys(self, samples: Samples, seed: int, epoch: int) -> Sequence[np.ndarray]:
        lengths, drawn = samples.columns[TOKENS], samples.drawn(seed, epoch)
        usable = np.flatnonzero(~np.isnan(lengths))
        row = samples.row or int(lengths[usable].max(initial=1))
        first, place = drawn.copy(), np.zeros(len(samples), dtype=np.int64)
        usable = usable[np.argsort(drawn[usable], kind="stable")]
        for start in range(0, len(usable), self.config.megabatch):
            mega = usable[start : start + self.config.megabatch]
            mega = mega[np.argsort(-lengths[mega], kind="stable")]
            for held in packed(lengths[mega].astype(np.int64).tolist(), row):
                # a row stands where its longest sample was drawn; what cannot be used stands where it was drawn itself
                first[mega[held]] = drawn[mega[held[0]]]
                place[mega[held]] = np.arange(len(held))
        return first, place


def packed(lengths: Sequence[int], row: int) -> list[list[int]]:
    """Which of the lengths, longest first, go into which row: each into the fullest one that takes it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    """Room and number of each row, ascending."""
    for index, length in enumerate(lengths):
        at = bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([])
            left, number = row, len(rows) - 1
        else:
            left, number = room.pop(at)
        rows[number].append(index)
        insort(room, (left - length, number))
    return rows
