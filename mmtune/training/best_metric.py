"""The best state of a run: by which measure it is chosen, and which it is so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune import registry
from mmtune.data.build import held_out_sections
from mmtune.errors import ConfigError

if TYPE_CHECKING:
    from mmtune.eval.tasks.base import Task
    from mmtune.recipe import Recipe


@dataclass
class BestMetric:
    """The best value of one measure so far."""

    measure: str
    """Its name; empty until a task that does not say its measures was asked for the first time."""
    lower: bool
    """Whether less is better."""
    value: float = math.nan
    """Not a number before the first validation."""
    step: int = 0

    def update(self, step: int, values: Mapping[str, float]) -> bool:
        """Take up a validation; whether it is the best so far. What is not finite never is, of equals the first.

        Raises ConfigError when the measure is not among the values.
        """
        self.measure = self.measure or next(iter(values))
        if self.measure not in values:
            raise _untaken(self.measure, values)
        value = values[self.measure]
        better = math.isnan(self.value) or (value < self.value if self.lower else value > self.value)
        if not math.isfinite(value) or not better:
            return False
        self.value, self.step = value, step
        return True

    def state(self) -> dict[str, Any]:
        """Plain values for a saved state."""
        return {"measure": self.measure, "step": self.step, "value": self.value if self.step else None}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take back what `state` gave; a run that is measured otherwise now begins with no best state."""
        if state and state["measure"] == (self.measure or state["measure"]) and state["value"] is not None:
            self.measure, self.value, self.step = state["measure"], state["value"], state["step"]


def best_metric_of(recipe: Recipe, task: Task | None) -> BestMetric | None:
    """The measure by which a recipe chooses, or None. Raises ConfigError for a measure that is not computed, be it
    chosen by or asked for by an order of samples."""
    known = _measures(recipe, task) if recipe.eval.every else {}
    for name, stream in recipe.streams.items():
        order = registry.find("data/orders", stream.order.name)(stream.order)
        for measure in order.measures:
            if not _is_taken(measure, known, task):
                raise _unasked(f"streams.{name}.order asks for {measure!r}", known)
    if not recipe.eval.every:
        return None
    measure = recipe.eval.best or next(iter(known), "")
    if not _is_taken(measure, known, task):
        raise _untaken(measure, known)
    return BestMetric(measure, known.get(measure, False))


def _measures(recipe: Recipe, task: Task | None) -> dict[str, bool]:
    """What a validation measures, as far as that is known before the first one, and whether less of it is better."""
    held = held_out_sections(recipe)
    lower = {"loss": True, **{f"{name}/loss": True for name in held}} if held else {}
    for name, like in held.items():
        objective = registry.find("objectives", recipe.streams[like].objective.name)
        lower |= {f"{name}/{measure}": way == "lower" for measure, way in objective.measures.items()}
    if task is not None:
        lower |= {f"{task.config.name}/{name}": way == "lower" for name, way in task.measures.items()}
    return lower


def _is_taken(measure: str, known: Mapping[str, bool], task: Task | None) -> bool:
    open_names = task is not None and not task.measures  # what it measures is known once it was asked
    return measure in known or (open_names and (not measure or measure.startswith(f"{task.config.name}/")))


def _unasked(seen: str, known: Mapping[str, bool]) -> ConfigError:
    if not known:
        return ConfigError(
            f"{seen}, and the run is never validated",
            "a run that is validated while it trains",
            "eval.every=STEPS, with eval.task and eval.data for the score of a task",
        )
    return ConfigError(seen, f"one of {', '.join(known)}", "eval.task and eval.data for the score of a task")


def _untaken(measure: str, known: Iterable[str]) -> ConfigError:
    return ConfigError(f"eval.best is {measure!r}", f"one of {', '.join(known)}")
