"""The one training loop. What differs between runs is in the recipe.

Each step is of one stream, or of several, and a stream's loss moves its own groups only. Data order, stream order and
random numbers are functions of (seed, step), so a run that is stopped, killed or moved goes on as if nothing had
happened.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmtune import config as configs
from mmtune import model as models
from mmtune import params, registry
from mmtune.addresses import without_secrets
from mmtune.checkpoint import store
from mmtune.data import remote
from mmtune.data.build import loader_of
from mmtune.data.features import FeatureCache
from mmtune.data.loader import Loader
from mmtune.errors import CheckpointError, DataError, ModelError, Reason, UsageError
from mmtune.items import set_features
from mmtune.recipe import Recipe, require_training, with_code
from mmtune.training import nonfinite, run_folder, trackers
from mmtune.training import resume as states
from mmtune.training.checkpoint_manager import CheckpointManager, Holder, TrainerState, allowed
from mmtune.training.distributed import Runtime
from mmtune.training.epochs import steps_of
from mmtune.training.estimate import Estimate, estimate
from mmtune.training.gradient_check import GradientCheck
from mmtune.training.lock import lock
from mmtune.training.log import Metrics, Progress, Style
from mmtune.training.signals import Stop
from mmtune.training.split_batch import split_batch
from mmtune.training.step import Outcome, OutOfMemory, take_step
from mmtune.training.trackers import Tracker
from mmtune.training.train_plan import TrainPlan
from mmtune.training.validation_loop import ValidationLoop
from mmtune.types import Batch

BAD_STEPS = 3
"""Steps in a row in which something was not finite, before a run gives up."""


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
    """Mean loss over the supervised tokens of the last 20 steps; none when no step was taken."""


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
        allow: what may have changed since the state was saved: recipe, data, tokenizer, base, prompts, code,
            ledger, or all.
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
                return _Run(recipe, None, runtime, progress).rehearse()
            with lock(out, progress.line) if runtime.is_main else nullcontext():
                # asked of all ranks before one of them writes the first file
                fault = run_folder.fault(out, resume) if runtime.is_main else None
                if runtime.any(fault is not None):
                    raise fault or UsageError(f"{out} is refused by the first rank", "a folder that it can train in")
                return _Run(recipe, out, runtime, progress, resume).go(resume, allow)
    finally:
        progress.stop()


def _count(names: list[str]) -> str:
    return f"{len(names)} more ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"


def assemble(recipe: Recipe, out: Path, runtime: Runtime, progress: Progress) -> _Run:
    """Model, data and optimizers of a run, as they are before its first step. Writes nothing."""
    return _Run(recipe, out, runtime, progress)


class _Run:
    """Everything that one call of `train` holds."""

    def __init__(
        self, recipe: Recipe, out: Path | None, runtime: Runtime, progress: Progress, resume: bool = False
    ) -> None:
        self.recipe, self.out, self.runtime, self.progress = recipe, out, runtime, progress
        self.step, self.bad, self.recent = 0, 0, _Recent()
        self.model = models.build(recipe.model, weights=True, seed=recipe.run.seed)
        runtime.barrier()  # a rank whose disk is slow is waited for
        self.groups = store.groups_of(self.model, recipe)
        # a saved state has all that came from there, and the folder may be gone by now
        if recipe.run.init_from and not (resume and states.exists(out / "state")):
            taken, fresh = store.start_from(recipe.run.init_from, self.model, self.groups)
            progress.line(f"{taken} tensors from {recipe.run.init_from}; {_count(fresh)} begin as they otherwise would")
        progress.line(params.table(self.model, self.groups, recipe.groups))
        self.base = store.base_of(self.model, recipe, self.groups)
        runtime.parallelize(self.model, progress.line)
        self.groups = runtime.refresh_parameters(self.model, self.groups)
        self.frozen = self._frozen() if runtime.settled else self._sums(self.base)
        self.marks = store.marks_of(self.model, self.groups)
        self.model.train()
        if recipe.run.activation_checkpointing:
            self.model.llm.checkpoint_activations()
        self.loader = self._loader()
        epochs = recipe.schedule.epochs
        self.steps = recipe.schedule.steps or steps_of(self.loader, epochs or 1.0, runtime, progress.line)
        self.train_plan = TrainPlan(recipe, self.groups, self.loader.schedule, self.steps)
        self.optimizers = self.train_plan.optimizers
        for objective in self.train_plan.objectives.values():
            objective.check(self.model)
            objective.begin(self.model, self.groups, {})
        self.gradient_check, self.pieces = GradientCheck(self.train_plan, self._has_media), 1
        self.step_callbacks = list(self.model.llm.step_callbacks.values())
        self.train_plan.begin(self.step_callbacks, self.steps)
        for line in self.train_plan.warnings():
            progress.line(line)
        for line in self._estimate().lines():
            progress.line(line)
        self.checkpoints = CheckpointManager(
            out,
            recipe,
            self.steps,
            runtime,
            self.model,
            self.groups,
            self.loader,
            self.base,
            self._holders,
            progress.line,
        )
        objectives = self.train_plan.objectives
        self.validation = ValidationLoop(
            recipe, out, self.model, runtime, self.loader, objectives, self.steps, progress.line
        )

    def _loader(self) -> Loader:
        recipe, runtime = self.recipe, self.runtime
        processors = {
            name: store.processor_for(recipe, self.model, stream.prompt, self.out)
            for name, stream in recipe.streams.items()
        }
        pad = self.model.llm.tokenizer.pad
        rest = (runtime.rank, runtime.world, pad, self.progress.line, runtime)
        return loader_of(recipe, processors, self.out, *rest, write=self.out is not None)

    def _estimate(self) -> Estimate:
        counts = self.loader.counts()
        return estimate(self.model, self.groups, counts, self.steps, self.recipe.run, self.runtime.world)

    # ------------------------------------------------------------------------------------------------ the whole run

    def rehearse(self) -> Result:
        """One step on real data, and nothing kept."""
        for _, outcome, stream in self._steps(Stop(), until=1):
            unit = " and ".join({self.train_plan.objectives[name].unit: 0 for name in outcome.losses})
            said = f"one step of {stream}: loss {outcome.loss:.4f} per {unit}, {outcome.tokens} tokens"
            self.gradient_check.end()
            self.validation.dry_run()
            self.progress.line(f"{said}. {self._written()}")
            return Result(self.out, 0, False, 0, outcome.loss)
        raise AssertionError("a schedule has at least one step")

    def _written(self) -> str:
        """What a rehearsal leaves behind."""
        streams = [*self.loader.streams.values(), *self.validation.streams]
        paths = [path for stream in streams for path in stream.corpus.paths]
        if all(isinstance(path, Path) for path in paths):
            return "Nothing was written."
        return f"Nothing was written but the shards that were fetched, in {remote.cache().folder}."

    def go(self, resume: bool, allow: Collection[str]) -> Result:
        if resume:
            self._restore(allow)
        steps = self.steps
        if self.step >= steps:
            self.checkpoints.mend(self._trainer_state())
            self.progress.line(f"{self.out} is finished: {self.step} steps. Nothing to do.")
            return Result(self.out, self.step, True, 0, None)
        self.validation.check()
        if self.runtime.is_main and self.step == 0:
            store.start_run(self.out, self.recipe, self.base)
        self._fill_feature_cache()
        metrics = Metrics(self.out, self.step, self._trackers()) if self.runtime.is_main else None
        recent, writer = self.recent, self.checkpoints.writer
        self.progress.start("training", steps, self.step)
        with Stop() as stop, writer:
            self.loader.ledger.rewind(self.step)
            if self.validation.is_due(self.step) and self._validate(
                stop, metrics
            ):  # it was stopped in the middle of that
                self._save(best=True, state=False)
            for values, outcome, stream in self._steps(stop, steps):
                recent.add(outcome)
                if metrics:
                    metrics.write(self.step, values)
                speed = f"{values['tokens_per_second']:.0f} tokens/s"
                self.progress.at(self.step, f"{stream} loss {outcome.loss:.4f}  {speed}")
                better = self.validation.is_due(self.step) and self._validate(stop, metrics)
                every = self.recipe.run.save_every
                state = self.step < steps and bool(every) and self.step % every == 0
                if better or state:
                    self._save(best=better, state=state)
            self.progress.stop()
            with self.runtime.without_deadline("waiting for the disk"):
                writer.wait()
            if self.step >= steps:  # who asked a run to stop may not give it the time; `_save` has a quick look
                self._check_frozen()
                for line in self.gradient_check.end():
                    self.progress.line(line)
            self._save(last=True)
            writer.wait()
        if metrics:
            metrics.close()
        self.progress.line(f"samples that could not be used: {self.loader.ledger.summary()}")
        if unusual := self.loader.ledger.unusual():
            self.progress.line(f"media that were unusual, and used: {unusual}")
        done = self.step >= steps
        if done:
            self.progress.line(f"done: {self.step} steps, loss {recent.loss or float('nan'):.4f}, saved in {self.out}")
        else:
            self.progress.line(f"saved at step {self.step} of {steps}. Go on with: mmtune train --resume {self.out}")
        return Result(self.out, self.step, done, stop.code, recent.loss)

    def _trackers(self) -> list[Tracker]:
        settings = without_secrets(self.recipe.model_dump(mode="json"))
        return trackers.opened(self.recipe.run.trackers, self.out, self.step, settings)

    def _validate(self, stop: Stop, metrics: Metrics | None) -> bool:
        """Validate; whether the run is better than ever."""
        write = metrics.write if metrics else lambda step, values: None
        return self.validation.run(self.step, lambda: bool(stop.code), write)

    def _steps(self, stop: Stop, until: int) -> Iterator[tuple[dict[str, Any], Outcome, str]]:
        """Step by step: metrics, outcome, stream. `self.step` counts the steps done."""
        run = self.recipe.run
        deadline = time.monotonic() + run.stop_after_minutes * 60 if run.stop_after_minutes else None
        feed = iter(self.loader.steps(self.step))
        while self.step < until:
            started = time.perf_counter()
            self.runtime.enter_stage(f"step {self.step}: data")
            stream, batches = next(feed)
            self.runtime.enter_stage(
                f"step {self.step}: forward and backward", [id for batch in batches for id in batch.ids]
            )
            waited = time.perf_counter() - started
            states.seed_step(run.seed, self.step, self.runtime.rank)
            lr_multipliers = self.train_plan.lr_multipliers(self.step, self.loader.held)
            outcome = self._checked_step(batches, lr_multipliers)
            self.bad = 0 if outcome.updated else self._refused(self.bad + 1, stream, batches, outcome)
            self.step += 1
            seconds = time.perf_counter() - started
            values = {
                "stream": stream,
                **outcome.loss_values(),
                "samples": outcome.samples,
                "tokens": outcome.tokens,
                "supervised_tokens": outcome.supervised,
                "samples_per_second": outcome.samples / seconds,
                "tokens_per_second": outcome.tokens / seconds,
                "data_wait": waited / seconds,
                "updated": int(outcome.updated),
                **{
                    f"lr/{name}": self.recipe.groups[name].lr * lr_multiplier
                    for name, lr_multiplier in lr_multipliers.items()
                },
                **{f"norm/{name}": norm for name, norm in outcome.norms.items()},
            }
            yield values, outcome, stream
            late = deadline is not None and time.monotonic() >= deadline
            # ranks may hear a signal at different steps; they stop together
            if self.runtime.any(bool(stop.code) or late or self.checkpoints.writer.failed):
                return

    def _checked_step(self, batches: list[Batch], lr_multipliers: dict[str, float]) -> Outcome:
        """A step, and a close look at the first of each stream."""
        streams = list(self.loader.held)
        if not self.gradient_check.is_due(streams):
            return self._attempt(batches, lr_multipliers, check_grads=False)
        self.gradient_check.before(streams)
        outcome = self._attempt(batches, lr_multipliers, check_grads=True)
        media = self._media(streams, batches)
        where = self.loader.positions(self.step + 1)["streams"]
        passed = {name for name, position in where.items() if position["epoch"]}
        self.gradient_check.after(outcome, streams, media, passed)
        return outcome

    def _media(self, streams: Sequence[str], batches: Sequence[Batch]) -> dict[str, set[str]]:
        """Stream to the branches that have an item of it in these micro-steps, on any rank."""
        pairs = [(stream, branch) for stream in streams for branch in self.model.branches]
        mine = [sum(branch in one.media for one in batches if one.stream == stream) for stream, branch in pairs]
        found: dict[str, set[str]] = {stream: set() for stream in streams}
        for (stream, branch), count in zip(pairs, self.runtime.all_reduce(mine), strict=True):
            if count:
                found[stream].add(branch)
        return found

    def _has_media(self, stream: str, branches: Collection[str]) -> bool | None:
        """Whether the data of a stream has media for branches; for any of them where none is named."""
        kinds = {kind for name in branches or self.model.branches for kind in self.model.branches[name].kinds}
        return self.loader.streams[stream].has_media(kinds)

    def _attempt(self, batches: list[Batch], lr_multipliers: dict[str, float], check_grads: bool) -> Outcome:
        """A step; where the recipe says so, once more in smaller pieces when there was no room for it."""
        run, train_plan = self.recipe.run, self.train_plan
        callbacks = train_plan.callbacks_for(self.step_callbacks, self.loader.held)
        rest = (self.runtime, train_plan.objectives, callbacks, train_plan.shares, check_grads)
        while True:
            parts = [part for batch in batches for part in split_batch(batch, self.pieces)]
            try:
                return take_step(self.model, parts, self.optimizers, train_plan.groups_by_stream, lr_multipliers, *rest)
            except OutOfMemory as error:
                ranks = ", ".join(map(str, error.ranks))
                where = f"on rank {ranks}, in rows of {error.shape[1]} tokens, {error.shape[0]} at a time: {error.said}"
            except (torch.OutOfMemoryError, MemoryError) as error:
                # not in a pass but in the update: some weights may have moved, and only what is saved is whole
                raise self._no_room(f"while updating: {error}") from error
            rows = -(-(run.batch_tokens // run.length) // self.runtime.world)
            if run.out_of_memory == "stop" or self.pieces >= rows:
                raise self._no_room(where)
            self.pieces = min(2 * self.pieces, rows)
            self.progress.line(f"out of memory {where}; from step {self.step} on in {self.pieces} pieces each")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            states.seed_step(run.seed, self.step, self.runtime.rank)

    def _no_room(self, where: str) -> ModelError:
        return ModelError(
            seen=f"out of memory in step {self.step}, {where}",
            expected="a micro-step that fits the device",
            hint="halve run.batch_tokens and double run.accumulate: the step stays the same; or take "
            "run.out_of_memory=smaller, or run.activation_checkpointing=true",
        )

    def _refused(self, times: int, stream: str, batches: list[Batch], outcome: Outcome) -> int:
        """Note a step without an update, and which of its samples do it alone; give up after several in a row."""
        states.seed_step(self.recipe.run.seed, self.step, self.runtime.rank)
        found = nonfinite.nonfinite_samples(self.model, batches, self.train_plan, self.runtime)
        self.progress.line(
            f"warning: step {self.step} of {stream} had loss {outcome.loss} and gradient norms {outcome.norms}; "
            f"no weight moved; {len(self.loader.ids)} samples are named in skipped.jsonl; not finite alone: "
            f"{', '.join(found) or 'none of them'}; look at them with: mmtune replay {self.out}"
        )
        where = self.loader.positions(self.step)["streams"]
        for name, ids in self.loader.held.items():
            more = {"step": self.step, "stream": name, "epoch": where[name]["epoch"]}
            for id in ids:
                shard, _, member = id.rpartition("/")
                self.loader.ledger.skip(id, shard, member, Reason.non_finite, guilty=id in found, **more)
        if times >= BAD_STEPS:
            raise DataError(
                Reason.non_finite,
                seen=f"{times} steps in a row with a loss or gradient that is not finite, the last of stream {stream}",
                expected="finite numbers",
                hint="lower the learning rate or lengthen the warm-up; the samples are named in skipped.jsonl",
            )
        return times

    # ------------------------------------------------------------------------------------------- saving, going on

    def _trainer_state(self) -> TrainerState:
        return TrainerState(self.step, self.bad, self.recent.values, self.pieces, self.validation.state())

    def _save(self, last: bool = False, best: bool = False, state: bool = True) -> None:
        self._check_still()
        with self.runtime.without_deadline(f"step {self.step}: saving"):
            self.checkpoints.save(self._trainer_state(), last, best, state)
            self.runtime.barrier()  # the first rank may have had to wait for the save before

    def _holders(self) -> dict[str, Holder]:
        """What has a state beside the weights: optimizers by group, step callbacks of tuners as @NAME, objectives."""
        callbacks = {f"@{name}": one for name, one in self.model.llm.step_callbacks.items()}
        return {**self.optimizers, **callbacks, **self.train_plan.objectives_with_state()}

    def _restore(self, allow: Collection[str]) -> None:
        found = self.checkpoints.restore(allow)
        self.step, self.bad, self.recent.values, self.pieces = found.step, found.bad, found.recent, found.pieces
        self.gradient_check.resume()
        self.validation.load(found.validation)

    def _fill_feature_cache(self) -> None:
        """Encode all that frozen encoders will be asked for, where the recipe keeps features, and use what is kept."""
        branches = self.model.branches.items()
        frozen = {n: b for n, b in branches if not any(p.requires_grad for p in b.encoder.parameters())}
        if self.recipe.run.feature_cache is None:
            return
        for name in [name for name, branch in frozen.items() if branch.encoder.draws]:
            self.progress.line(
                f"features of {name} are not kept: its encoder draws views, crops or frames again each time"
            )
            del frozen[name]
        if not frozen:
            return
        cache = FeatureCache(self.recipe.run.feature_cache, frozen, self.recipe.limits)
        streams = [*self.loader.streams.values(), *self.validation.streams]
        if self.runtime.is_main:
            self.progress.start("encoding media, once", sum(len(stream.corpus) for stream in streams))
            counts = cache.fill(streams, self.recipe.run.workers, progress=lambda done, _: self.progress.at(done))
            self.progress.stop()
            self.progress.line("features: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        self.runtime.barrier()
        cache.reload()
        set_features(self.model, [stream.processor for stream in streams], cache, frozen)
        if self.model.fusion.default_image_branch in frozen:  # here, because a data worker must not touch the device
            frozen[self.model.fusion.default_image_branch].black_image()

    # ----------------------------------------------------------------------------------------- frozen means frozen

    @staticmethod
    def _sums(base: dict[str, dict[str, Any]]) -> dict[str, str]:
        return {part: entry["sha256"] for part, entry in base.items()}

    def _frozen(self) -> dict[str, str]:
        return self._sums(store.base_of(self.model, self.recipe, self.groups))

    def _check_still(self) -> None:
        """A quick look at every save; the digests are taken at the end."""
        now = store.marks_of(self.model, self.groups)
        self._say_moved([part for part in self.marks if now.get(part) != self.marks[part]])

    def _check_frozen(self) -> None:
        with self.runtime.without_deadline("looking at frozen weights"):
            now = self._frozen()
        self._say_moved([part for part in self.frozen if now.get(part) != self.frozen[part]])

    @staticmethod
    def _say_moved(moved: list[str]) -> None:
        if moved:
            raise CheckpointError(
                seen=f"frozen weights of {', '.join(moved)} changed while training",
                expected="frozen parts equal to the bit",
                hint="this is a fault of the program; the last saved state is from before",
            )


class _Recent:
    """Loss of the last steps, weighted by what their supervised tokens count."""

    def __init__(self, length: int = 20) -> None:
        self.length = length
        self.values: list[tuple[float, float]] = []

    def add(self, outcome: Outcome) -> None:
        if outcome.updated:
            self.values = [*self.values, (outcome.loss, outcome.weight)][-self.length :]

    @property
    def loss(self) -> float | None:
        count = sum(n for _, n in self.values)
        return sum(loss * n for loss, n in self.values) / count if count else None
