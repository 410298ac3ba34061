"""How many steps a number of passes over the data is.

How many samples a step holds is known only when they are packed, so it is measured: up to `MEASURED` samples of each
stream, in the order in which the run takes them, are prepared and packed as the run will. They are the first ones, or
stretches from all over the epoch where its order begins with samples that are not like the others. The same data,
recipe and seed give the same number, on any number of ranks and workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count

from mmtune.data.loader import Loader, Skip
from mmtune.data.pack import BatchSpec, Packer
from mmtune.data.prefetch import prepared
from mmtune.errors import DataError, Reason
from mmtune.training.distributed import Runtime

MEASURED = 256
"""Most samples of a stream that are prepared to measure how many a step holds."""
STRETCHES = 8
"""Places of an epoch from which they are taken, where its beginning is not like the rest."""


def steps_of(loader: Loader, epochs: float, runtime: Runtime, say: Callable[[str], None]) -> int:
    """Steps in which a run takes `epochs` times as many samples as its streams hold together; at least one.

    The first rank measures, and all take its word.

    Args:
        say: reports what was measured, and whether a stream has more samples than that.

    Raises:
        DataError: not one of the measured samples of a stream can be used.
    """
    steps = 0
    if runtime.is_main:
        held = {name: _held(loader, name) for name in loader.streams}
        mean = _mean(loader, held)
        total = sum(loader.counts().values())
        steps = max(1, math.ceil(epochs * total / mean - 1e-9))
        most = max(loader.counts().values())
        from_ = f", estimated from {MEASURED} samples of each stream that has more" if most > MEASURED else ""
        say(f"{epochs:g} epochs of {total:,} samples are {steps:,} steps, at {mean:.1f} samples a step{from_}")
    runtime.barrier()
    return int(runtime.all_reduce([steps])[0])


def _held(loader: Loader, name: str) -> float:
    """Samples that a step of this stream alone takes, those that cannot be used included."""
    size = min(MEASURED, len(loader.streams[name].corpus))
    samples = prepared(loader, name, _places(loader, name, size))
    lengths = [None if isinstance(one, Skip) else len(one) for one in samples]
    if all(length is None for length in lengths):
        raise DataError(
            Reason.empty_target,
            f"not one of the first {size} samples of stream {name} can be used, so its steps cannot be counted",
            "data that can be used",
            "mmtune data check PATTERN --recipe RECIPE says what is wrong",
        )
    return _packed(lengths, loader.specs[name])


def _places(loader: Loader, name: str, size: int) -> Sequence[int]:
    """Positions of the samples that are measured."""
    corpus = loader.streams[name].corpus
    if corpus.sample_order.even or size == len(corpus):
        return range(size)
    starts = (number * (len(corpus) - size // STRETCHES) // (STRETCHES - 1) for number in range(STRETCHES))
    return [start + place for start in starts for place in range(size // STRETCHES)]


def _packed(lengths: Sequence[int | None], spec: BatchSpec) -> float:
    """Samples a step, mean over as many whole steps as the lengths fill; they come again until one is full."""
    packer, steps, whole = Packer(spec), 0, 0
    for index in count():
        length = lengths[index % len(lengths)]
        if length is not None and (packer.full or not packer.add(length)):
            steps, whole, packer = steps + 1, index, Packer(spec)
            packer.add(length)
            if index >= len(lengths):
                break
    return whole / steps


def _mean(loader: Loader, held: dict[str, float]) -> float:
    """Samples a step, mean over a period of the turns that streams take."""
    period = len(loader.schedule.pattern)
    total = 0.0
    for step in range(period):
        turns = loader.schedule.streams(step)
        total += sum(held[name] / len(turns) for name in turns)
    return total / period
