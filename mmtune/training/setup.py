"""What a run is made of before its first step: model, data, optimizers. Nothing of it counts steps or is saved.

A run, its replay and its inspection build the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mmtune import model as models
from mmtune import params
from mmtune.checkpoint import store
from mmtune.data.build import loader_of
from mmtune.data.loader import Loader
from mmtune.model import MultimodalModel
from mmtune.recipe import Recipe
from mmtune.training import other_models
from mmtune.training import resume as states
from mmtune.training.callbacks import StepCallbacks
from mmtune.training.distributed import Runtime
from mmtune.training.epochs import steps_of
from mmtune.training.estimate import estimate
from mmtune.training.other_models import OtherModels
from mmtune.training.train_plan import TrainPlan

Say = Callable[[str], None]


class Holder(Protocol):
    """What has a state beside the weights: an optimizer, a step callback of a tuner, an objective."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Setup:
    """A run before its first step, see `build`."""

    recipe: Recipe
    out: Path | None
    """The run folder; none keeps nothing."""
    runtime: Runtime
    model: MultimodalModel
    """On its device, in training mode."""
    groups: store.Groups
    """Who trains what."""
    base: dict[str, dict[str, Any]]
    """What each frozen part is, see `store.base_of`."""
    settled: bool
    """Whether frozen weights have another type by now than `base` was taken of."""
    others: OtherModels
    """The recipe's other models."""
    loader: Loader
    steps: int
    """Of the whole run."""
    train_plan: TrainPlan
    step_callbacks: StepCallbacks

    def holders(self) -> dict[str, Holder]:
        """What has a state beside the weights: optimizers by group, step callbacks of tuners as @NAME, objectives."""
        callbacks = {f"@{name}": callback for name, callback in self.model.llm.step_callbacks.items()}
        return {**self.train_plan.optimizers, **callbacks, **self.train_plan.objectives_with_state()}


def build(
    recipe: Recipe,
    out: Path | None,
    runtime: Runtime,
    say: Say = lambda line: None,
    resume: bool = False,
) -> Setup:
    """Build a run. Every rank calls this.

    Args:
        say: gets what a reader should know: who trains what, how much data there is, what it will take.
        resume: where `out` has a state, it is about to be loaded, and `run.init_from` is not read again.

    Raises:
        ConfigError, CheckpointError, ModelError, DataError: what the parts raise.
    """
    model = models.build(recipe.model, weights=True, seed=recipe.run.seed)
    runtime.barrier()  # a rank whose disk is slow is waited for
    groups = store.groups_of(model, recipe)
    # a saved state has all that came from there, and the folder may be gone by now
    if recipe.run.init_from and not (resume and states.exists(out / "state")):
        taken, fresh = store.start_from(recipe.run.init_from, model, groups)
        say(f"{taken} tensors from {recipe.run.init_from}; {_count(fresh)} begin as they otherwise would")
    say(params.table(model, groups, recipe.groups))
    base = store.base_of(model, recipe, groups)
    settled = runtime.parallelize(model, say)
    groups = runtime.refresh_parameters(model, groups)
    model.train()
    if recipe.run.activation_checkpointing:
        model.llm.checkpoint_activations()
    others = other_models.build(recipe, model, runtime, say)
    loader = _loader(recipe, model, out, runtime, say)
    steps = recipe.schedule.steps or steps_of(loader, recipe.schedule.epochs or 1.0, runtime, say)
    train_plan = TrainPlan(recipe, groups, loader.schedule, steps)
    for objective in train_plan.objectives.values():
        objective.check(model)
        objective.begin(model, groups, others.models)
    step_callbacks = StepCallbacks(model.llm.step_callbacks, train_plan, recipe.run.seed)
    step_callbacks.begin(steps)
    cost = estimate(model, groups, loader.counts(), steps, recipe, runtime.world)
    for line in [*train_plan.warnings(), *cost.lines()]:
        say(line)
    return Setup(
        recipe, out, runtime, model, groups, base, settled, others, loader, steps, train_plan, step_callbacks
    )


def _loader(recipe: Recipe, model: MultimodalModel, out: Path | None, runtime: Runtime, say: Say) -> Loader:
    processors = {
        name: store.processor_for(recipe, model, stream.prompt, out) for name, stream in recipe.streams.items()
    }
    rest = (runtime.rank, runtime.world, model.llm.tokenizer.pad, say, runtime)
    return loader_of(recipe, processors, out, *rest, write=out is not None)


def _count(names: list[str]) -> str:
    return f"{len(names)} more ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"
