"""Who trains what, how many, at which rate and by which stream: the long answer of `mmtune show RECIPE --groups`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mmtune import registry
from mmtune.config import Outside
from mmtune.data.build import schedule_of
from mmtune.training.train_plan import LRSchedule, lr_schedules_of

if TYPE_CHECKING:
    from mmtune.params import ParameterGroup
    from mmtune.recipe import Recipe

Named = Sequence[tuple[str, Any]]


def lines(recipe: Recipe, model: Any, parts: Mapping[str, Named]) -> list[str]:
    """Every group with all its parameters, layers folded together; then the sums, to the last digit.

    Args:
        parts: what `mmtune.params.partition` gave.
    """
    schedule, steps = schedule_of(recipe), recipe.schedule.steps
    if steps is None:  # only the data can tell; a thousand steps show the parts
        steps = 1000
        said = f"{recipe.schedule.epochs:g} epochs, of which the data settles the steps; of each 1,000 steps"
    else:
        said = f"{steps:,} steps"
    counts = {name: schedule.count(steps, [name]) for name in recipe.streams}
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    out = [f"{said}, interleave: {recipe.schedule.interleave}; steps of each stream: {told}"]
    for name, stream in recipe.streams.items():
        trained = [group for group, settings in recipe.groups.items() if settings.trained_by(name)]
        out.append(f"  {name}: {stream.objective.name} moves {', '.join(trained)}")
    for name, group_schedule in lr_schedules_of(recipe, schedule, steps).items():
        out += ["", *_group(name, group_schedule, steps, recipe, parts[name])]
    total = sum(parameter.numel() for parameter in model.parameters())
    trains = {name: sum(parameter.numel() for _, parameter in named) for name, named in parts.items()}
    out += ["", f"trained  {sum(trains.values()):,} = " + " + ".join(f"{n:,} ({g})" for g, n in trains.items())]
    out += [f"frozen   {total - sum(trains.values()):,}", f"model    {total:,}"]
    return out


def _group(name: str, schedule: LRSchedule, steps: int, recipe: Recipe, named: Named) -> list[str]:
    group = recipe.groups[name]
    streams = [stream for stream in recipe.streams if group.trained_by(stream)]
    numbers = sum(parameter.numel() for _, parameter in named)
    decayed = sum(parameter.numel() for _, parameter in named if parameter.ndim >= 2)
    max_grad_norm = recipe.run.max_grad_norm if group.max_grad_norm is None else group.max_grad_norm
    falls = (
        "stays"
        if schedule.lr_schedule == "constant"
        else f"falls ({schedule.lr_schedule}) to {schedule.lr * schedule.min_lr_ratio!r}"
    )
    decay = f"{group.weight_decay!r} on {decayed:,} of them" if group.weight_decay else "none"
    folded = _folded(named)
    wide = max((len(row[0]) for row in folded), default=0)
    return [
        f"{name}: {numbers:,} parameters, {len(named):,} tensors",
        f"  by      {', '.join(streams)}: {schedule.steps:,} of {steps:,} steps",
        f"  rate    {schedule.lr!r} after {schedule.warmup:,} steps, then {falls}",
        f"  {group.optimizer.name:6}  {_options(group)}decay {decay}, clip {max_grad_norm or 'none'}",
        *(f"  {full:{wide}}  {shape}  {count:,}" for full, shape, count in folded),
    ]


def _options(group: ParameterGroup) -> str:
    """What is set of its optimizer; of one outside mmtune, what was written."""
    chosen = group.optimizer.model_dump(exclude={"name"})
    if isinstance(group.optimizer, Outside) or registry.find("optimizers", group.optimizer.name).uses_betas:
        chosen = {"betas": " ".join(map(repr, group.betas)), **chosen}
    return "".join(f"{key} {value}, " for key, value in chosen.items())


def _folded(named: Named) -> list[tuple[str, str, int]]:
    """(name, shape, numbers) of each parameter; those that differ in the number of a layer are one line."""
    found: dict[tuple[str, tuple[int, ...]], list[tuple[tuple[int, ...], int]]] = {}
    for name, parameter in named:
        key = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name), tuple(parameter.shape)
        numbers = tuple(int(index) for index in re.findall(r"(?<=\.)(\d+)(?=\.|$)", name))
        found.setdefault(key, []).append((numbers, parameter.numel()))
    rows = []
    for (name, shape), several in found.items():
        for index in range(name.count("#")):
            name = name.replace("#", _ranges(sorted({numbers[index] for numbers, _ in several})), 1)
        times = f" x {len(several)}" if len(several) > 1 else ""
        rows.append((name, f"{list(shape)}{times}", sum(count for _, count in several)))
    return rows


def _ranges(numbers: Sequence[int]) -> str:
    """`7` or `{0-3,5}`."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs = []
    for _, several in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in several]
        runs.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return "{" + ",".join(runs) + "}"
