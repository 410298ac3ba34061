"""The one training loop. What differs between runs is in the recipe.

Each step is of one stream, or of several, and a stream's loss moves its own groups only. Data order, stream order and
random numbers are functions of (seed, step), so a run that is stopped, killed or moved goes on as if nothing had
happened.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune import config as configs
from mmtune import registry
from mmtune.addresses import without_secrets
from mmtune.checkpoint import store
from mmtune.data import remote
from mmtune.errors import UsageError
from mmtune.recipe import Recipe, require_training, with_code
from mmtune.training import run_folder, trackers
from mmtune.training.checkpoint_manager import CheckpointManager, allowed
from mmtune.training.distributed import Runtime
from mmtune.training.feature_cache import fill_feature_cache
from mmtune.training.frozen_check import FrozenCheck
from mmtune.training.lock import lock
from mmtune.training.log import Metrics, Progress, Style, step_row
from mmtune.training.setup import Setup, build
from mmtune.training.signals import Stop
from mmtune.training.step import Outcome
from mmtune.training.stepper import Stepper
from mmtune.training.trackers import Tracker
from mmtune.training.trainer_state import TrainerState
from mmtune.training.validation_loop import ValidationLoop
from mmtune.types import Batch


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    out: Path | None
    step: int
    """Steps done since the start of the run."""
    finished: bool
    code: int
    """Exit code for a process: 0, or 130 and 143 after Ctrl-C and SIGTERM."""
    loss: float | None
    """Mean loss over the supervised tokens of the last 20 steps; None when no step was taken."""


def train(
    recipe: Recipe | str | Path,
    out: Path | str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    progress: Style = "auto",
    allow: Collection[str] = (),
    allow_code: Collection[str] = (),
) -> Result:
    """Train a recipe into a run folder.

    Args:
        recipe: a recipe, or the path or name of one.
        out: the run folder; `run.out` of the recipe when not given.
        resume: go on from the newest whole state in `out`; with no state there, start from the first step.
        dry_run: build everything, take one step, write nothing.
        progress: how to talk, see `Progress`.
        allow: what may have changed since the state was saved: recipe, data, tokenizer, base, models, prompts,
            code, ledger, or all.
        allow_code: classes outside mmtune that the recipe may use, see `mmtune.registry.allow`. No run remembers it.

    Raises:
        ConfigError: a recipe without streams or groups, or a class outside mmtune that is not allowed.
        UsageError: the folder holds a run and `resume` is not set, or another process trains in it.
        CheckpointError: no whole state, a state of another recipe, or a frozen weight that moved.
        DataError: too many samples could not be used, or too many steps in a row were not finite.
    """
    allow = allowed(allow)
    registry.allow(allow_code)
    if not isinstance(recipe, Recipe):
        recipe = configs.load(Recipe, recipe)
    require_training(recipe)
    recipe = with_code(recipe)
    out = Path(out or recipe.run.out) if (out or recipe.run.out) else None
    if out is None and not dry_run:
        raise UsageError(seen="no run folder", expected="where to write the run", hint="give --out FOLDER")
    trackers.check(recipe.run.trackers)
    progress = Progress(progress)
    run = recipe.run
    runtime = Runtime(run.device, run.precision, run.strategy, run.offload, run.compile, run.deadline)
    if not runtime.is_main:
        progress = Progress("off")
    try:
        with runtime.running():
            if dry_run:
                return Trainer(build(recipe, None, runtime, progress.line), progress).dry_run()
            with lock(out, progress.line) if runtime.is_main else nullcontext():
                # asked of all ranks before one of them writes the first file
                fault = run_folder.fault(out, resume) if runtime.is_main else None
                if runtime.any(fault is not None):
                    raise fault or UsageError(f"{out} is refused by the first rank", "a folder that it can train in")
                return Trainer(build(recipe, out, runtime, progress.line, resume), progress).train(resume, allow)
    finally:
        progress.stop()


class Trainer:
    """A run under way: what was built, and what is counted while it trains."""

    def __init__(self, setup: Setup, progress: Progress) -> None:
        self.setup, self.progress, self.state = setup, progress, TrainerState()
        self.stepper = Stepper(setup, self.state, progress.line)
        self.frozen = FrozenCheck(setup)
        self.checkpoints = CheckpointManager(setup, progress.line)
        self.validation = ValidationLoop(setup, progress.line)

    def dry_run(self) -> Result:
        """One step on real data, and nothing kept."""
        stream, outcome, _ = next(self._steps(Stop(), until=1))
        self.stepper.gradient_check.end()
        self.validation.dry_run()
        unit = " and ".join({self.setup.train_plan.objectives[name].unit: 0 for name in outcome.losses})
        said = f"one step of {stream}: loss {outcome.loss:.4f} per {unit}, {outcome.tokens} tokens"
        streams = [*self.setup.loader.streams.values(), *self.validation.streams]
        fetched = any(not isinstance(path, Path) for stream in streams for path in stream.corpus.paths)
        but = f" but the shards that were fetched, in {remote.cache().folder}" if fetched else ""
        self.progress.line(f"{said}. Nothing was written{but}.")
        return Result(self.setup.out, 0, False, 0, outcome.loss)

    def train(self, resume: bool, allow: Collection[str]) -> Result:
        """All steps that are left. Raises what `train` of this module raises."""
        if resume:
            self._resume(allow)
        setup, state = self.setup, self.state
        if state.step >= setup.steps:
            self.checkpoints.mend(state)
            self.progress.line(f"{setup.out} is finished: {state.step} steps. Nothing to do.")
            return Result(setup.out, state.step, True, 0, None)
        self.validation.check()
        if setup.runtime.is_main and state.step == 0:
            store.start_run(setup.out, setup.recipe, setup.base)
        fill_feature_cache(setup, self.validation.streams, self.progress)
        metrics = Metrics(setup.out, state.step, self._trackers()) if setup.runtime.is_main else None
        self.progress.start("training", setup.steps, state.step)
        with Stop() as stop, self.checkpoints.writer:
            setup.loader.ledger.rewind(state.step)
            self._train(stop, metrics)
            self._finish()
        if metrics:
            metrics.close()
        return self._report(stop)

    def _train(self, stop: Stop, metrics: Metrics | None) -> None:
        """Step, log, validate and save, until the last step is done or the run is to stop."""
        state, steps, every = self.state, self.setup.steps, self.setup.recipe.run.save_every
        if self._validate(stop, metrics):  # it was stopped in the middle of that
            self._save(best=True, state=False)
        for stream, outcome, row in self._steps(stop, steps):
            if outcome.updated:
                state.add_loss(outcome.loss, outcome.weight)
            if metrics:
                metrics.write(state.step, row)
            speed = f"{row['tokens_per_second']:.0f} tokens/s"
            self.progress.at(state.step, f"{stream} loss {outcome.loss:.4f}  {speed}")
            best = self._validate(stop, metrics)
            due = state.step < steps and bool(every) and state.step % every == 0
            if best or due:
                self._save(best=best, state=due)
        self.progress.stop()

    def _steps(self, stop: Stop, until: int) -> Iterator[tuple[str, Outcome, dict[str, Any]]]:
        """Step by step: stream, outcome, and a row of metrics. `state.step` counts the steps done."""
        minutes = self.setup.recipe.run.stop_after_minutes
        deadline = time.monotonic() + minutes * 60 if minutes else None
        feed = iter(self.setup.loader.steps(self.state.step))
        while self.state.step < until:
            yield self._step(feed)
            late = deadline is not None and time.monotonic() >= deadline
            # ranks may hear a signal at different steps; they stop together
            if self.setup.runtime.any(bool(stop.code) or late or self.checkpoints.writer.failed):
                return

    def _step(self, feed: Iterator[tuple[str, list[Batch]]]) -> tuple[str, Outcome, dict[str, Any]]:
        """The next step of the data."""
        setup, state, started = self.setup, self.state, time.perf_counter()
        setup.runtime.enter_stage(f"step {state.step}: data")
        stream, batches = next(feed)
        ids = [id for batch in batches for id in batch.ids]
        setup.runtime.enter_stage(f"step {state.step}: forward and backward", ids)
        waited = time.perf_counter() - started
        lr_multipliers = setup.train_plan.lr_multipliers(state.step, setup.loader.held)
        outcome = self.stepper.step(stream, batches, lr_multipliers)
        state.step += 1
        rates = {name: setup.recipe.groups[name].lr * multiplier for name, multiplier in lr_multipliers.items()}
        return stream, outcome, step_row(stream, outcome, rates, time.perf_counter() - started, waited)

    def _validate(self, stop: Stop, metrics: Metrics | None) -> bool:
        """Validate where it is due; whether the run is better than ever."""
        if not self.validation.is_due(self.state.step):
            return False
        write = metrics.write if metrics else lambda step, values: None
        return self.validation.run(self.state.step, lambda: bool(stop.code), write)

    def _save(self, last: bool = False, best: bool = False, state: bool = True) -> None:
        self.frozen.quick()
        self.state.validation = self.validation.state()
        with self.setup.runtime.without_deadline(f"step {self.state.step}: saving"):
            self.checkpoints.save(self.state, last, best, state)
            self.setup.runtime.barrier()  # the first rank may have had to wait for the save before

    def _resume(self, allow: Collection[str]) -> None:
        self.checkpoints.restore(self.state, allow)
        self.stepper.gradient_check.resume()
        self.validation.load(self.state.validation)
        self.state.validation = self.validation.state()

    def _finish(self) -> None:
        """Look at the whole once more, and save it."""
        writer = self.checkpoints.writer
        with self.setup.runtime.without_deadline("waiting for the disk"):
            writer.wait()
        if self.state.step >= self.setup.steps:  # who asked a run to stop may not give it the time; `_save` is quick
            self.frozen.whole()
            for line in self.stepper.gradient_check.end():
                self.progress.line(line)
        self._save(last=True)
        writer.wait()

    def _report(self, stop: Stop) -> Result:
        out, steps, state, ledger = self.setup.out, self.setup.steps, self.state, self.setup.loader.ledger
        self.progress.line(f"samples that could not be used: {ledger.summary()}")
        if unusual := ledger.unusual():
            self.progress.line(f"media that were unusual, and used: {unusual}")
        done = state.step >= steps
        if done:
            self.progress.line(f"done: {state.step} steps, loss {state.loss or float('nan'):.4f}, saved in {out}")
        else:
            self.progress.line(f"saved at step {state.step} of {steps}. Go on with: mmtune train --resume {out}")
        return Result(out, state.step, done, stop.code, state.loss)

    def _trackers(self) -> list[Tracker]:
        settings = without_secrets(self.setup.recipe.model_dump(mode="json"))
        return trackers.opened(self.setup.recipe.run.trackers, self.setup.out, self.state.step, settings)
