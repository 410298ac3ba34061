"""Which stream feeds step s: a function of the step, the shares and the seed, the same on every rank.

Shares are brought to whole numbers and laid out as evenly as they go: smooth weighted round robin, in which the stream
that is furthest behind its share comes next. 1 to 1 alternates; 3 to 1 is a a b a. The seed only says where in
this pattern a run begins.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmtune.errors import ConfigError


class Schedule:
    """Streams by step.

    Args:
        shares: stream to its part of the steps, in any unit.

    Raises:
        ConfigError: no streams, or a share that is not above zero.
    """

    def __init__(self, shares: Mapping[str, float], seed: int = 0) -> None:
        if not shares:
            raise ConfigError("no streams", "at least one")
        wrong = [name for name, share in shares.items() if not 0 < share < float("inf")]
        if wrong:
            raise ConfigError(f"share of {', '.join(wrong)}", "a number above zero")
        self.pattern = _lay(_whole(shares))
        """Streams of the steps of one period."""
        self._start = seed % len(self.pattern)

    def stream(self, step: int) -> str:
        """The stream of a step."""
        return self.pattern[(step + self._start) % len(self.pattern)]


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
