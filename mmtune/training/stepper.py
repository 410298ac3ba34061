"""The steps of a run: each one taken, in smaller pieces where there is no room, looked at closely the first time, and
its samples named where something was not finite.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from mmtune.errors import DataError, ModelError, Reason
from mmtune.training import nonfinite
from mmtune.training import resume as states
from mmtune.training.gradient_check import GradientCheck
from mmtune.training.gradients import OutOfMemory, gradients_of
from mmtune.training.setup import Say, Setup
from mmtune.training.split_batch import split_batch
from mmtune.training.step import Outcome, take_step
from mmtune.training.trainer_state import TrainerState
from mmtune.types import Batch

BAD_STEPS = 3
"""Steps in a row in which something was not finite, before a run gives up."""


class Stepper:
    """Takes the steps of a run.

    Args:
        state: which step is next; what this counts of it is `nonfinite_steps` and `micro_step_parts`.
        say: gets warnings.
    """

    def __init__(self, setup: Setup, state: TrainerState, say: Say) -> None:
        self.setup, self.state = setup, state
        self.gradient_check = GradientCheck(setup.train_plan, self._has_media)
        self._say = say

    def step(self, stream: str, batches: list[Batch], lr_multipliers: Mapping[str, float]) -> Outcome:
        """Take the step that the loader holds: forward, backward and update, or no update at all.

        Args:
            stream: what the step is called.
            batches: the micro-steps of this rank.

        Raises:
            ModelError: no room for it, or a group that nothing reaches.
            DataError: `BAD_STEPS` in a row in which something was not finite.
        """
        self._seed()
        self.setup.step_callbacks.before(self.state.step, self.setup.loader.held)
        outcome = self._checked(batches, lr_multipliers)
        if outcome.updated:
            self.state.nonfinite_steps = 0
        else:
            self.state.nonfinite_steps += 1
            self._skip(stream, batches, outcome)
        return outcome

    def _seed(self) -> None:
        states.seed_step(self.setup.recipe.run.seed, self.state.step, self.setup.runtime.rank)

    def _checked(self, batches: list[Batch], lr_multipliers: Mapping[str, float]) -> Outcome:
        """A step, and a close look at the first of each stream."""
        loader = self.setup.loader
        streams = list(loader.held)
        if not self.gradient_check.is_due(streams):
            return self.attempt(batches, lr_multipliers)
        self.gradient_check.before(streams)
        outcome = self.attempt(batches, lr_multipliers, check_grads=True)
        where = loader.positions(self.state.step + 1)["streams"]
        passed = {name for name, position in where.items() if position["epoch"]}
        self.gradient_check.after(outcome, streams, self._media(streams, batches), passed)
        return outcome

    def attempt(self, batches: list[Batch], lr_multipliers: Mapping[str, float], check_grads: bool = False) -> Outcome:
        """A step; if it does not fit into memory and the recipe allows it, again in smaller parts."""
        setup, run, plan = self.setup, self.setup.recipe.run, self.setup.train_plan
        callbacks = setup.step_callbacks.active(setup.loader.held)
        gradients = gradients_of(run.gradient, run.seed, self.state.step)
        rest = (setup.runtime, plan.objectives, callbacks, plan.shares, check_grads, gradients)
        while True:
            parts = [part for batch in batches for part in split_batch(batch, self.state.micro_step_parts)]
            try:
                return take_step(setup.model, parts, plan.optimizers, plan.groups_by_stream, lr_multipliers, *rest)
            except OutOfMemory as error:
                ranks = ", ".join(map(str, error.ranks))
                where = f"on rank {ranks}, in rows of {error.shape[1]} tokens, {error.shape[0]} at a time: {error.said}"
            except (torch.OutOfMemoryError, MemoryError) as error:
                # not in a pass but in the update: some weights may have moved, and only what is saved is whole
                raise self._no_room(f"while updating: {error}") from error
            rows = -(-(run.batch_tokens // run.length) // setup.runtime.world)
            if run.out_of_memory == "stop" or self.state.micro_step_parts >= rows:
                raise self._no_room(where)
            count = self.state.micro_step_parts = min(2 * self.state.micro_step_parts, rows)
            self._say(f"out of memory {where}; from step {self.state.step} on in {count} pieces each")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._seed()

    def _no_room(self, where: str) -> ModelError:
        return ModelError(
            seen=f"out of memory in step {self.state.step}, {where}",
            expected="a micro-step that fits the device",
            hint="halve run.batch_tokens and double run.accumulate: the step stays the same; or take "
            "run.out_of_memory=smaller, or run.activation_checkpointing=true",
        )

    def _skip(self, stream: str, batches: list[Batch], outcome: Outcome) -> None:
        """Note a step without an update, and which of its samples do it alone; give up after several in a row."""
        setup, loader, step = self.setup, self.setup.loader, self.state.step
        self._seed()
        found = nonfinite.nonfinite_samples(setup.model, batches, setup.train_plan, setup.runtime)
        self._say(
            f"warning: step {step} of {stream} had loss {outcome.loss} and gradient norms {outcome.norms}; "
            f"no weight moved; {len(loader.ids)} samples are named in skipped.jsonl; not finite alone: "
            f"{', '.join(found) or 'none of them'}; look at them with: mmtune replay {setup.out}"
        )
        where = loader.positions(step)["streams"]
        for name, ids in loader.held.items():
            more = {"step": step, "stream": name, "epoch": where[name]["epoch"]}
            for id in ids:
                shard, _, member = id.rpartition("/")
                loader.ledger.skip(id, shard, member, Reason.non_finite, fails_alone=id in found, **more)
        if self.state.nonfinite_steps >= BAD_STEPS:
            raise DataError(
                Reason.non_finite,
                seen=f"{self.state.nonfinite_steps} steps in a row with a loss or gradient that is not finite, "
                f"the last of stream {stream}",
                expected="finite numbers",
                hint="lower the learning rate or lengthen the warm-up; the samples are named in skipped.jsonl",
            )

    def _media(self, streams: Sequence[str], batches: Sequence[Batch]) -> dict[str, set[str]]:
        """Stream to the branches that have an item of it in these micro-steps, on any rank."""
        pairs = [(stream, branch) for stream in streams for branch in self.setup.model.branches]
        mine = [sum(branch in one.media for one in batches if one.stream == stream) for stream, branch in pairs]
        found: dict[str, set[str]] = {stream: set() for stream in streams}
        for (stream, branch), count in zip(pairs, self.setup.runtime.all_reduce(mine), strict=True):
            if count:
                found[stream].add(branch)
        return found

    def _has_media(self, stream: str, branches: Collection[str]) -> bool | None:
        """Whether the data of a stream has media for branches; for any of them where none is named."""
        every = self.setup.model.branches
        kinds = {kind for name in branches or every for kind in every[name].kinds}
        return self.setup.loader.streams[stream].has_media(kinds)
