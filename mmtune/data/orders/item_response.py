"""Samples that the model is able for come first, then the others, the easier ones before the harder ones.

Ability and difficulty stand on one scale, that of the one-parameter model of item response theory (Rasch 1960): a model
of ability a answers an item of difficulty b rightly with probability 1 / (1 + exp(b - a)). Difficulties are a number of
the records, scaled so that those of the held-out questions have a mean of 0. The ability is settled as an epoch begins,
from the share p of held-out questions that the last validation found right: a = log(p / (1 - p)). As it grows, more
samples are drawn at random from the first on, and a model that is able for all is trained in a plain shuffle.

This only orders: an epoch holds every sample once, also those that are too hard, at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmtune.data.orders.base import Order, OrderConfig, Samples
from mmtune.errors import ConfigError

LEAST = 1e-3
"""Least share of right and of wrong answers that is believed: none wrong of a few is no endless ability."""


class Config(OrderConfig):
    measure: str
    """The share of right answers among what validations measure, as `qa/exact_match`."""
    column: str = "difficulty"
    """Path of the difficulty in the .json of a record. A record without one comes as if it were easy."""
    ability: float = 0.0
    """Ability in the first epoch, and until there was a validation."""


class ItemResponse(Order):
    """Within the ability at random, beyond it by difficulty."""

    Config = Config
    config: Config
    whole = True
    stateful = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._ability = config.ability

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    @property
    def measures(self) -> tuple[str, ...]:
        return (self.config.measure,)

    def keys(self, samples: Samples, seed: int, epoch: int) -> Sequence[np.ndarray]:
        difficulty = samples.columns[self.config.column]
        return (np.where(difficulty > self._ability, difficulty, -np.inf),)

    def begin_epoch(self, epoch: int, measures: Mapping[str, float]) -> None:
        """Raises ConfigError when validations do not measure what the order asks for."""
        if not measures:
            return
        if self.config.measure not in measures:
            known = ", ".join(sorted(measures))
            raise ConfigError(f"order item_response: measure {self.config.measure!r}", f"one of {known}")
        share = min(max(measures[self.config.measure], LEAST), 1 - LEAST)
        self._ability = math.log(share / (1 - share))

    def state(self) -> dict[str, Any]:
        return {"ability": self._ability}

    def load(self, state: Mapping[str, Any]) -> None:
        self._ability = float(state["ability"])
