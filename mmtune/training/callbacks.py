"""Step callbacks of tuners: which of them a step asks, and how often each is asked in a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mmtune.training.resume import step_generator

if TYPE_CHECKING:
    from mmtune.training.train_plan import TrainPlan
    from mmtune.tuners.base import StepCallback


class StepCallbacks:
    """What tuners have to do in every step. A step asks a callback where it trains all of its parameters.

    Args:
        callbacks: `step_callbacks` of the language model, by name.
        seed: of the run.
    """

    def __init__(self, callbacks: Mapping[str, StepCallback], train_plan: TrainPlan, seed: int) -> None:
        self._callbacks, self._train_plan, self._seed = callbacks, train_plan, seed

    def active(self, streams: Iterable[str]) -> list[StepCallback]:
        """Those that a step of these streams asks."""
        if not self._callbacks:
            return []
        plan = self._train_plan
        moved = {id(p) for name in plan.trained_groups(streams) for p in plan.optimizers[name].parameters}
        return [one for one in self._callbacks.values() if moved.issuperset(map(id, one.parameters()))]

    def begin(self, steps: int) -> None:
        """Tell each in how many of the run's `steps` it will be asked. Raises ConfigError for too few."""
        asked = dict.fromkeys(self._callbacks, 0)
        known: dict[frozenset[str], list[StepCallback]] = {}
        for step in range(steps if asked else 0):
            streams = frozenset(self._train_plan.schedule.streams(step))  # their groups move together
            if streams not in known:
                known[streams] = self.active(streams)
            for name, one in self._callbacks.items():
                asked[name] += one in known[streams]
        for name, one in self._callbacks.items():
            one.begin(asked[name])

    def before(self, step: int, streams: Iterable[str]) -> None:
        """Call `before` of those that step `step` of the run asks, with draws that are the same on every rank."""
        if active := self.active(streams):
            generator = step_generator(self._seed, step)
            for one in active:
                one.before(step, generator)
