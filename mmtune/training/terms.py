"""The terms of an objective put together: one number to go backward from, the same however a step is cut.

The primary term's sum stands as it is and is divided by its count after the backward pass, by the optimizer of each
group; the sum of another term is multiplied by the quotient of the two counts before. So one term alone is not
multiplied by anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from mmtune.errors import ConfigError
from mmtune.objectives.base import Objective
from mmtune.types import Batch

Value = TypeVar("Value")
Number = TypeVar("Number", float, Tensor)


def counts_of(objective: Objective, batch: Batch) -> dict[str, float]:
    """What a batch counts, by term. Raises ConfigError for what the objective does not read: weights, and samples of
    another number of conversations."""
    several = {1} if batch.samples is None else set(batch.samples[:, 2].tolist())
    if batch.ids and several != {objective.sequences}:
        raise ConfigError(
            f"stream {batch.stream} has samples of {' and '.join(map(str, sorted(several)))} conversations "
            f"({', '.join(batch.ids[:4])}), and its objective {objective.config.name} takes {objective.sequences}",
            "pairs of answers for an objective that compares, and conversations for any other",
            "format: preference with objective: dpo; format: llava with objective: cross_entropy",
        )
    if batch.weights is not None and not objective.weighted:
        raise ConfigError(
            f"stream {batch.stream} has records with weights ({', '.join(batch.ids[:4])}), and its objective "
            f"{objective.config.name} knows none",
            "an objective that reads batch.weights and says so: weighted = True",
            "objective: cross_entropy, or ignore: [weight, loss, loss_scale] in the format of the stream",
        )
    return objective.counts(batch)


def lost(objective: Objective, values: Mapping[str, Value]) -> dict[str, Value]:
    """Those of some values by term that are of the loss, and not of a measure."""
    return {term: value for term, value in values.items() if term not in objective.measures}


def measured(objective: Objective, sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """The mean of each measure that counted anything."""
    return {name: sums[name] / counts[name] for name in objective.measures if counts[name]}


def primary(counts: Mapping[str, float]) -> float:
    """The count that divides the whole."""
    return next(iter(counts.values()))


def total(sums: Mapping[str, Number], counts: Mapping[str, float]) -> Number:
    """The sum that, divided by the primary count, is the sum of the means of all terms.

    Args:
        sums: by term, of a part of a step or of all of it.
        counts: by term, of the whole step on all ranks; the first is the primary one.

    Raises:
        ConfigError: other terms than those that were counted.
    """
    if sums.keys() != counts.keys():
        raise ConfigError(
            f"an objective with a loss of {', '.join(sums) or 'nothing'}", f"the terms it counts: {', '.join(counts)}"
        )
    first, *others = counts
    whole = sums[first]
    for term in others:
        whole = whole + sums[term] * (counts[first] / counts[term] if counts[term] else 0.0)
    return whole


def means(sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """The mean of each of several terms, those left out that counted nothing; nothing for one term alone."""
    return {term: sums[term] / count for term, count in counts.items() if count} if len(counts) > 1 else {}
