"""The random state of Python, NumPy and torch: given back as it was, and set for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def kept(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Whatever is drawn or seeded within, afterwards the random state is as it was.

    Args:
        devices: accelerators whose state is kept, beside that of the CPU.
    """
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Within, what is drawn on the CPU follows from `value` alone; afterwards the random state is as it was."""
    with kept():
        random.seed(value)
        numpy.random.seed(value % 2**32)
        torch.default_generator.manual_seed(value % 2**63)
        yield
