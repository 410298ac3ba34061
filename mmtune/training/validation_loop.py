"""When a run is validated, what comes of it, and whether that is the best so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mmtune.checkpoint import seal, store
from mmtune.data.build import held_out_of
from mmtune.training.best_metric import BestMetric, best_metric_of
from mmtune.training.validate import Validator, said, task_of

if TYPE_CHECKING:
    from mmtune.data.loader import Stream
    from mmtune.training.setup import Say, Setup

DRY_RUN_SAMPLES = 8
"""Samples of each held-out stream that a rehearsal looks at."""


class ValidationLoop:
    """Validates a run every `eval.every` steps, and after the last one.

    Args:
        say: reports what was found.

    Raises:
        ConfigError: a measure that is not taken.
        DataError: held-out data that cannot be read.
    """

    def __init__(self, setup: Setup, say: Say) -> None:
        recipe, out, loader, objectives = setup.recipe, setup.out, setup.loader, setup.train_plan.objectives
        self._every, self._steps, self._out, self._say = recipe.eval.every, setup.steps, out, say
        self._runtime, self._ledger, self._loader = setup.runtime, loader.ledger, loader
        self.best: BestMetric | None = best_metric_of(recipe, task_of(recipe) if recipe.eval.data else None)
        self._last = 0
        """The step after which the run was validated last."""
        self._validator: Validator | None = None
        if self.best is None:
            return
        processors = {name: stream.processor for name, stream in loader.streams.items()}
        streams = held_out_of(recipe, processors, say, write=out is not None)
        asked = store.processor_for(recipe, setup.model, run=out)
        self._validator = Validator(recipe, setup.model, setup.runtime, streams, objectives, asked, self._ledger)
        held = ", ".join(f"{stream.name} {len(stream.corpus):,}" for stream in streams) or "nothing"
        chosen = self.best.measure or "the first score of the task"
        say(f"held out  {held}; validated every {self._every:,} steps, the best state is chosen by {chosen}")

    @property
    def streams(self) -> list[Stream]:
        """Held-out streams."""
        return self._validator.streams if self._validator else []

    def is_due(self, step: int) -> bool:
        """Whether the run is to be validated after `step` steps, and was not."""
        due = bool(self._every) and step > 0 and (step % self._every == 0 or step == self._steps)
        return due and self._last != step

    def run(
        self, step: int, stopped: Callable[[], bool], write: Callable[[int, dict[str, Any]], None] = lambda *row: None
    ) -> bool:
        """Validate. Every rank calls this.

        Args:
            stopped: whether to give up; then the validation is done when the run goes on.
            write: takes a row of metrics.

        Returns:
            Whether this is the best state so far.
        """
        if self._validator is None or self.best is None:
            return False
        begun = time.perf_counter()
        values = self._validator.run(step, stopped)
        if values is None:
            return False
        self._last, self._loader.measures = step, dict(values)
        write(step, {**{f"eval/{name}": v for name, v in values.items()}, "eval/seconds": time.perf_counter() - begun})
        better = self.best.update(step, values)
        self._say(f"validation after step {step}: {said(values)}{'; the best so far' if better else ''}")
        return better

    def check(self) -> None:
        """Raise DataError for held-out data of which nothing can be used, before the first step."""
        if self._validator is not None:
            self._validator.check()

    def dry_run(self) -> None:
        """Validate on a few samples, to see that it works."""
        if self._validator is not None:
            found = self._validator.run(1, limit=DRY_RUN_SAMPLES)
            self._say(f"validation on up to {DRY_RUN_SAMPLES} samples of each stream: {said(found or {})}")

    def state(self) -> dict[str, Any]:
        """Plain values for a saved state."""
        return {"last": self._last, "best": self.best.state() if self.best else None}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take back what `state` gave. A best state that is not whole any more is forgotten, and that is said."""
        if not state or self.best is None:
            return
        self._last = state["last"]
        self.best.load(state["best"])
        lost = self._runtime.is_main and self.best.step > 0 and bool(seal.faults(self._out / "best" / "weights"))
        if self._runtime.any(lost):
            self._say(f"warning: the best state, of step {self.best.step}, is damaged or gone; the next one counts")
            self.best = BestMetric(self.best.measure, self.best.lower)
