"""Which stream feeds which step: a function of the step, the recipe and the seed, the same on every rank.

Streams take turns in one of four ways:

    share      a step is of one stream, and streams have steps in proportion to their shares
    alternate  the same with equal shares: a b a b
    stage      a row of stages, each of some steps and some streams, which take turns by share in it
    mixed      a step holds several streams: its micro-steps take turns by share

Shares are brought to whole numbers and laid out as evenly as they go: smooth weighted round robin, in which the stream
that is furthest behind its share comes next. 1 to 1 alternates; 3 to 1 is a a b a. The seed only says where in
this pattern a run begins.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from mmtune.errors import ConfigError

Interleave = Literal["share", "alternate", "stage", "mixed"]


class Schedule:
    """Streams by step.

    Args:
        shares: stream to its part of the steps, in any unit.
        interleave: see above.
        parts: micro-steps of a step; matters to `mixed` only.
        stages: (streams, steps) of each stage, for `stage`. The last one goes on without end.

    Raises:
        ConfigError: no streams, a share that is not above zero, stages that name other streams or none.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        seed: int = 0,
        interleave: Interleave = "share",
        parts: int = 1,
        stages: Sequence[tuple[Collection[str], int]] = (),
    ) -> None:
        if not shares:
            raise ConfigError("no streams", "at least one")
        wrong = [name for name, share in shares.items() if not 0 < share < float("inf")]
        if wrong:
            raise ConfigError(f"share of {', '.join(wrong)}", "a number above zero")
        if (interleave == "stage") != bool(stages):
            raise ConfigError(
                f"{len(stages)} stages with interleave: {interleave}", "stages, and interleave: stage, or neither"
            )
        if interleave == "alternate":
            shares = dict.fromkeys(shares, 1.0)
        parts = parts if interleave == "mixed" else 1
        self._stages: list[tuple[int, _Round]] = []
        """First step of each stage, and the turns in it."""
        begin = 0
        for names, steps in stages or [(tuple(shares), 1)]:
            if steps < 1 or not names or not set(names) <= set(shares):
                raise ConfigError(f"a stage of {', '.join(names) or 'no stream'}, {steps} steps", ", ".join(shares))
            chosen = {name: share for name, share in shares.items() if name in names}
            self._stages.append((begin, _Round(chosen, seed, parts)))
            begin += steps
        self.pattern = self._stages[0][1].pattern
        """Streams of the (micro-)steps of one period of the first stage."""

    def streams(self, step: int) -> tuple[str, ...]:
        """The stream of every micro-step of a step; one alone where the whole step is of one stream."""
        begin, turns = next(stage for stage in reversed(self._stages) if stage[0] <= step)
        return turns.at(step - begin)

    def stream(self, step: int) -> str:
        """The first stream of a step."""
        return self.streams(step)[0]

    def count(self, step: int, streams: Collection[str]) -> int:
        """How many of the steps before `step` have any of these streams in them."""
        ends = [begin for begin, _ in self._stages[1:]] + [step]
        total = 0
        for (begin, turns), end in zip(self._stages, ends, strict=True):
            total += turns.count(max(0, min(end, step) - begin), frozenset(streams))
        return total


class _Round:
    """Streams that take turns by share, `parts` in each step."""

    def __init__(self, shares: Mapping[str, float], seed: int, parts: int) -> None:
        self.pattern = _lay(_whole(shares))
        self._start, self._parts = seed % len(self.pattern), parts
        self._period = len(self.pattern) // math.gcd(len(self.pattern), parts)
        self._before: dict[frozenset[str], list[int]] = {}

    def at(self, step: int) -> tuple[str, ...]:
        first = step * self._parts + self._start
        return tuple(self.pattern[(first + part) % len(self.pattern)] for part in range(self._parts))

    def count(self, steps: int, streams: frozenset[str]) -> int:
        if streams not in self._before:
            have = (bool(streams.intersection(self.at(step))) for step in range(self._period))
            self._before[streams] = [0, *accumulate(int(one) for one in have)]
        before = self._before[streams]
        whole, rest = divmod(steps, self._period)
        return whole * before[-1] + before[rest]


def _whole(shares: Mapping[str, float]) -> dict[str, int]:
    """Shares as whole numbers: exactly where up to 200 times the least share does it, else to a thousandth of it."""
    least = min(shares.values())
    if max(shares.values()) > 100_000 * least:
        raise ConfigError(f"shares {dict(shares)}", "shares of which none is 100000 times another")
    parts = {name: share / least for name, share in shares.items()}
    for unit in range(1, 201):
        if all(abs(part * unit - round(part * unit)) < 1e-6 * unit for part in parts.values()):
            break
    else:
        unit = 1000
    return {name: round(part * unit) for name, part in parts.items()}


def _lay(weights: dict[str, int]) -> list[str]:
    total = sum(weights.values())
    credit = dict.fromkeys(weights, 0)
    pattern = []
    for _ in range(total):
        for name, weight in weights.items():
            credit[name] += weight
        best = max(credit, key=lambda name: credit[name])
        credit[best] -= total
        pattern.append(best)
    return pattern
