"""The same questions in several wordings, and how far scores depend on the wording.

Sensitivity is the standard deviation of a measure over the wordings divided by its mean, as in MultiInstruct (Xu, Shen,
Huang 2023, section 4.2). The deviation is that of the population (the wordings at hand are all that are asked about). A
mean of zero has no sensitivity: it is given as none, never as 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmtune.types import Sample

if TYPE_CHECKING:
    from mmtune.eval.tasks.base import Task

PLACE = "{question}"
"""Where a wording has the question."""


def rows(task: Task) -> dict[str, str]:
    """Row of the report to the wording that is asked in it."""
    return {f"instruction {number}": text for number, text in enumerate(task.config.instructions, 1)}


def reworded(sample: Sample, wording: str) -> Sample:
    """The conversation with the text of its last turn in a wording; media stay where they are, before or behind it."""
    last = sample.turns[-1]
    places = [index for index, part in enumerate(last.parts) if isinstance(part, str) and part.strip()]
    if not places:
        return sample
    parts = list(last.parts)
    text = parts[places[-1]]
    lead, end = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]  # what sets it off from media stays
    parts[places[-1]] = lead + wording.replace(PLACE, text.strip()) + end
    return replace(sample, turns=(*sample.turns[:-1], replace(last, parts=tuple(parts))))


def spread(measures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Each measure over the wordings: its mean, least and most, deviation and sensitivity.

    Args:
        measures: by wording, the measures over the same questions; two wordings at least.
    """
    found = {}
    for name in next(iter(measures.values())):
        values = [one[name] for one in measures.values()]
        known = all(map(math.isfinite, values))
        mean = statistics.fmean(values) if known else math.nan
        deviation = statistics.pstdev(values) if known else math.nan
        found[name] = {
            "mean": mean,
            "low": min(values),
            "high": max(values),
            "deviation": deviation,
            "sensitivity": deviation / abs(mean) if known and mean else None,
        }
    return found


def text(measures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of the report."""
    heads = ("mean", "low", "high", "sensitivity")
    lines = ["", f"{'over instructions':<20}" + "".join(f"{word:>13}" for word in heads)]
    for name, one in measures.items():
        shown = "none" if one["sensitivity"] is None else f"{one['sensitivity']:.4f}"
        numbers = "".join(f"{one[word]:>13.4g}" for word in ("mean", "low", "high"))
        lines.append(f"{name.replace('_', ' '):<20}{numbers}{shown:>13}")
    return lines
