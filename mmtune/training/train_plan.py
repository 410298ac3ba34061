"""Who moves in which step, and how fast: optimizers, owners and objectives of a recipe, by group and stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune import registry
from mmtune.data.streams import Schedule
from mmtune.params import Curve, Named
from mmtune.recipe import Recipe
from mmtune.training.optim import GroupOptimizer, factor

if TYPE_CHECKING:
    from mmtune.objectives.base import Objective
    from mmtune.tuners.base import Attendant


@dataclass(frozen=True)
class Pace:
    """The learning rate of a group, by its own steps."""

    lr: float
    steps: int
    """Steps of the run that train the group."""
    warmup: int
    kind: Curve
    floor: float

    def factor(self, step: int) -> float:
        """What the rate is multiplied by in the group's step `step` (0-based)."""
        return factor(step, self.steps, self.warmup, self.kind, self.floor)


def owners_of(recipe: Recipe) -> dict[str, list[str]]:
    """Stream to the groups that it trains."""
    return {
        stream: [name for name, group in recipe.groups.items() if group.trained_by(stream)] for stream in recipe.streams
    }


def paces_of(recipe: Recipe, schedule: Schedule, steps: int) -> dict[str, Pace]:
    """Group to its learning rate: what it says itself, and what `schedule` of the recipe says where it does not.

    Args:
        steps: of the whole run.
    """
    common, paces = recipe.schedule, {}
    for name, group in recipe.groups.items():
        trained = [stream for stream in recipe.streams if group.trained_by(stream)]
        paces[name] = Pace(
            lr=group.lr,
            steps=schedule.count(steps, trained),
            warmup=common.warmup if group.warmup is None else group.warmup,
            kind=group.kind or common.kind,
            floor=common.floor if group.floor is None else group.floor,
        )
    return paces


class Team:
    """One optimizer and pace for each group, one objective for each stream.

    Args:
        groups: what `mmtune.params.partition` gave.
        schedule: which streams feed which step.
        steps: of the whole run.
    """

    def __init__(self, recipe: Recipe, groups: Mapping[str, Named], schedule: Schedule, steps: int) -> None:
        self.schedule = schedule
        self.owners = owners_of(recipe)
        self.paces = paces_of(recipe, schedule, steps)
        self.shares = {name: stream.share for name, stream in recipe.streams.items()}
        self.objectives: dict[str, Objective] = {
            name: registry.find("objectives", stream.objective.name)(stream.objective)
            for name, stream in recipe.streams.items()
        }
        self.optimizers = {}
        for name, named in groups.items():
            group = recipe.groups[name]
            clip = recipe.run.clip if group.clip is None else group.clip
            self.optimizers[name] = GroupOptimizer(name, named, group.lr, group.weight_decay, clip, group.betas)

    def moving(self, streams: Iterable[str]) -> list[str]:
        """Groups that a step of these streams trains, in the order of the recipe."""
        moved = {name for stream in streams for name in self.owners[stream]}
        return [name for name in self.optimizers if name in moved]

    def factors(self, step: int, streams: Iterable[str]) -> dict[str, float]:
        """What the rates of the moving groups are multiplied by in step `step` of the run."""
        return {name: self.paces[name].factor(self._own(name, step)) for name in self.moving(streams)}

    def _own(self, group: str, step: int) -> int:
        """How many of the steps before `step` train a group."""
        return self.schedule.count(step, [stream for stream, names in self.owners.items() if group in names])

    def short(self) -> list[str]:
        """A line for each group that no step trains, and for each whose warm-up is longer than what trains it."""
        return [
            f"warning: group {name} is trained by no step of this run: none of its streams comes in it"
            if not pace.steps
            else f"warning: group {name} warms up over {pace.warmup} steps, but only {pace.steps} steps train it"
            for name, pace in self.paces.items()
            if not pace.steps or pace.warmup > pace.steps
        ]

    def attending(self, attendants: Sequence[Attendant], streams: Iterable[str]) -> list[Attendant]:
        """Attendants all of whose parameters a step of these streams trains."""
        moved = {id(parameter) for name in self.moving(streams) for parameter in self.optimizers[name].parameters}
        return [one for one in attendants if moved.issuperset(map(id, one.parameters()))]

    def begin(self, attendants: Sequence[Attendant], steps: int) -> None:
        """Tell attendants in how many of the run's steps they will be asked. Raises ConfigError for too few."""
        asked = [0] * len(attendants)
        known: dict[frozenset[str], list[bool]] = {}
        for step in range(steps if attendants else 0):
            streams = frozenset(self.schedule.streams(step))  # their groups move together
            if streams not in known:
                known[streams] = [one in self.attending(attendants, streams) for one in attendants]
            asked = [count + one for count, one in zip(asked, known[streams], strict=True)]
        for one, count in zip(attendants, asked, strict=True):
            one.begin(count)
