"""The plan of a run: optimizer and learning rate of each group, objective of each stream, and which stream trains which
group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmtune import registry
from mmtune.data.build import held_out_sections
from mmtune.data.streams import Schedule
from mmtune.errors import ConfigError
from mmtune.objectives.base import Objective
from mmtune.params import Named, SchedulerType
from mmtune.recipe import Recipe
from mmtune.training.optim import GroupOptimizer, lr_multiplier

OBJECTIVE = "@objective."
"""What the name of an objective's state begins with; the stream's name follows."""


@dataclass(frozen=True)
class LRSchedule:
    """The learning rate of a group, by its own steps."""

    lr: float
    steps: int
    """Steps of the run that train the group."""
    warmup: int
    lr_schedule: SchedulerType
    min_lr_ratio: float

    def lr_multiplier(self, step: int) -> float:
        """What the rate is multiplied by in the group's step `step` (0-based)."""
        return lr_multiplier(step, self.steps, self.warmup, self.lr_schedule, self.min_lr_ratio)


def groups_by_stream_of(recipe: Recipe) -> dict[str, list[str]]:
    """Stream to the groups that it trains."""
    return {
        stream: [name for name, group in recipe.groups.items() if group.trained_by(stream)] for stream in recipe.streams
    }


def lr_schedules_of(recipe: Recipe, schedule: Schedule, steps: int) -> dict[str, LRSchedule]:
    """Group to its learning rate: what it says itself, and what `schedule` of the recipe says where it does not.

    Args:
        steps: of the whole run.
    """
    common, lr_schedules = recipe.schedule, {}
    for name, group in recipe.groups.items():
        trained = [stream for stream in recipe.streams if group.trained_by(stream)]
        lr_schedules[name] = LRSchedule(
            lr=group.lr,
            steps=schedule.count(steps, trained),
            warmup=common.warmup if group.warmup is None else group.warmup,
            lr_schedule=group.lr_schedule or common.lr_schedule,
            min_lr_ratio=common.min_lr_ratio if group.min_lr_ratio is None else group.min_lr_ratio,
        )
    return lr_schedules


def require_fit(recipe: Recipe) -> None:
    """Raise ConfigError where a format makes samples of another number of conversations than the objective takes."""
    streams = {**{name: name for name in recipe.streams}, **held_out_sections(recipe)}
    for name, like in streams.items():
        held = recipe.eval.streams.get(name)
        section = (held.format if held else None) or recipe.streams[like].format
        format = registry.find("data/formats", section.name)
        objective = registry.find("objectives", recipe.streams[like].objective.name)
        if format.sequences != objective.sequences:
            raise ConfigError(
                f"stream {name}: the format {section.name} makes samples of {format.sequences} conversations each, and "
                f"the objective {recipe.streams[like].objective.name} takes {objective.sequences}",
                "pairs of answers for an objective that compares, and conversations for any other",
                "format: preference with objective: dpo; format: llava with objective: cross_entropy",
            )


class TrainPlan:
    """One optimizer and learning-rate schedule for each group, one objective for each stream.

    Args:
        groups: what `mmtune.params.partition` gave.
        schedule: which streams feed which step.
        steps: of the whole run.
    """

    def __init__(self, recipe: Recipe, groups: Mapping[str, Named], schedule: Schedule, steps: int) -> None:
        require_fit(recipe)
        self.schedule, self.gradient = schedule, recipe.run.gradient
        self.groups_by_stream = groups_by_stream_of(recipe)
        self.lr_schedules = lr_schedules_of(recipe, schedule, steps)
        self.shares = {name: stream.share for name, stream in recipe.streams.items()}
        self.objectives: dict[str, Objective] = {
            name: registry.find("objectives", stream.objective.name)(stream.objective)
            for name, stream in recipe.streams.items()
        }
        self.optimizers = {}
        for name, named in groups.items():
            group = recipe.groups[name]
            max_grad_norm = recipe.run.max_grad_norm if group.max_grad_norm is None else group.max_grad_norm
            entry = registry.find("optimizers", group.optimizer.name)(group.optimizer)
            self.optimizers[name] = GroupOptimizer(
                name, named, group.lr, group.weight_decay, max_grad_norm, group.betas, entry
            )

    def trained_groups(self, streams: Iterable[str]) -> list[str]:
        """Groups that a step of these streams trains, in the order of the recipe."""
        moved = {name for stream in streams for name in self.groups_by_stream[stream]}
        return [name for name in self.optimizers if name in moved]

    def lr_multipliers(self, step: int, streams: Iterable[str]) -> dict[str, float]:
        """What the rates of the moving groups are multiplied by in step `step` of the run."""
        return {
            name: self.lr_schedules[name].lr_multiplier(self._steps_of_group(name, step))
            for name in self.trained_groups(streams)
        }

    def _steps_of_group(self, group: str, step: int) -> int:
        """How many of the steps before `step` train a group."""
        return self.schedule.count(step, [stream for stream, names in self.groups_by_stream.items() if group in names])

    def warnings(self) -> list[str]:
        """A line for each group that no step trains, and for each whose warm-up is longer than what trains it."""
        return [
            f"warning: group {name} is trained by no step of this run: none of its streams comes in it"
            if not one.steps
            else f"warning: group {name} warms up over {one.warmup} steps, but only {one.steps} steps train it"
            for name, one in self.lr_schedules.items()
            if not one.steps or one.warmup > one.steps
        ]

    def objectives_with_state(self) -> dict[str, Objective]:
        """Objectives that have something to save, by the name their file gets."""
        return {
            f"{OBJECTIVE}{stream}": objective
            for stream, objective in self.objectives.items()
            if type(objective).state is not Objective.state
        }
