"""Parameter groups: every trainable parameter belongs to exactly one group, and the table that shows them.

Patterns are shell globs over full parameter names (`*` crosses dots), or `@NAME` for the names that tuner NAME added
or opened. A pattern that matches nothing, a parameter that two groups claim, and a trainable parameter that no group
claims stop the program: each of them is a run that would quietly train something else than was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from torch.nn import Parameter

from mmtune import config, registry
from mmtune.config import Config, Outside, entry
from mmtune.errors import ConfigError
from mmtune.types import Tunable

Named = list[tuple[str, Parameter]]

SchedulerType = Literal["cosine", "half_cosine", "linear", "constant"]
"""How a learning rate falls after its warm-up; see `mmtune.training.optim.lr_multiplier`."""

BETAS = (0.9, 0.999)
"""Decay of running means where a group says nothing."""
SHOWN = 8
"""Names listed of each mistake; the rest are counted."""


OptimizerEntry = entry("optimizers", short=True)


class ParameterGroup(Config):
    """Parameters that train together: one optimizer, one file of weights."""

    match: Annotated[tuple[str, ...], Field(min_length=1)]
    """Globs over full parameter names, or @TUNER for what that tuner added or opened."""
    lr: Annotated[float, Field(gt=0, le=10)]
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decoupled weight decay; acts on matrices only."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = BETAS
    """Decay of running means of the gradient and of its square, for optimizers that have them, as AdamW."""
    optimizer: OptimizerEntry = Field(default={"name": "adamw"})
    """How a gradient becomes a step; a name, or a name with options."""
    streams: tuple[str, ...] = ()
    """Streams whose steps train the group; none named means all."""
    max_grad_norm: Annotated[float, Field(ge=0)] | None = None
    """Largest norm of the group's gradient; 0 turns clipping off, none takes `run.max_grad_norm`."""
    lr_schedule: SchedulerType | None = None
    """How the learning rate of the group falls; none takes `schedule.lr_schedule`."""
    warmup: Annotated[int, Field(ge=0)] | None = None
    """Steps of the group over which its rate rises from zero; none takes `schedule.warmup`."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """What the rate falls to, as a part of `lr`; none takes `schedule.min_lr_ratio`."""

    @field_validator("optimizer")
    @classmethod
    def _reads_betas(cls, optimizer: Config, info: ValidationInfo) -> Config:
        own = info.data.get("betas", BETAS) != BETAS and not isinstance(optimizer, Outside)
        if own and not registry.find("optimizers", optimizer.name).uses_betas:
            raise config.cross_field(f"{optimizer.name} has no betas; leave out `betas` of the group")
        return optimizer

    def trained_by(self, stream: str) -> bool:
        """Whether steps of a stream train the group."""
        return not self.streams or stream in self.streams


class GradientSection(Config):
    """Where gradients come from."""

    name: Literal["backward", "two_point"]
    """A backward pass, or forward passes alone."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """two_point: how far weights are moved along a direction, to both sides."""
    directions: Annotated[int, Field(ge=1, le=1024)] = 1
    """two_point: directions in a step, two forward passes each."""

    @model_validator(mode="after")
    def _reads_its_options(self) -> GradientSection:
        fields = type(self).model_fields
        set_ = [key for key in ("epsilon", "directions") if getattr(self, key) != fields[key].default]
        if self.name == "backward" and set_:
            raise config.cross_field(f"backward has no {' and no '.join(set_)}; two_point has")
        return self


Gradient = Annotated[
    GradientSection, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)
]


def partition(model: Tunable, groups: Mapping[str, ParameterGroup], frozen: Sequence[str] = ()) -> dict[str, Named]:
    """Give every trainable parameter to one group, and open (`requires_grad`) what a group claims.

    Args:
        model: parameters that are trainable already must be claimed; others may be. `model.tuned` says what `@NAME`
            stands for.
        groups: name to group.
        frozen: patterns of what does not train although it could, see `freeze`.

    Returns:
        Group to (full name, parameter), in the order of the model. A parameter with several names (tied weights) is
        listed once under its first; a pattern may use any of them.

    Raises:
        ConfigError: all patterns that match nothing, parameters claimed twice, trainable ones claimed by none, and
            claimed ones that are to stay frozen.
    """
    resting = set(freeze(model, frozen)) if frozen else set()
    claims, wrong = _claims(model, groups)
    canonical = dict(model.named_parameters())
    result: dict[str, Named] = {group: [] for group in groups}
    twice, orphans, whole, both = [], [], [], []
    for name, parameter in canonical.items():
        owners = claims.get(id(parameter), [])
        if len(owners) > 1:
            twice.append(f"{name} (groups {', '.join(owners)})")
        elif owners and name in resting:
            both.append(f"{name} (group {owners[0]})")
        elif owners and not (parameter.is_floating_point() or parameter.is_complex()):
            whole.append(f"{name} ({str(parameter.dtype).removeprefix('torch.')})")
        elif owners:
            result[owners[0]].append((name, parameter))
        elif parameter.requires_grad:
            orphans.append(name)
    wrong += _listed("claimed by more than one group", twice)
    wrong += _listed("trainable, but in no group", orphans)
    wrong += _listed("named by model.freeze, and claimed all the same", both)
    wrong += _listed("claimed, but not a floating-point tensor", whole)
    if wrong:
        raise ConfigError(
            "groups that do not fit the model:\n  " + "\n  ".join(wrong),
            "every trainable parameter in exactly one group, and none of them in model.freeze",
            "mmtune show RECIPE --groups lists the names; model.freeze keeps parameters from training"
            if groups
            else "mmtune init writes a recipe with groups and streams; model.freeze keeps parameters from training",
        )
    for named in result.values():
        for _, parameter in named:
            parameter.requires_grad_(True)
    return result


def freeze(model: Tunable, patterns: Iterable[str] = ("*",)) -> list[str]:
    """Keep the parameters that match from training; returns their names.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    patterns = list(patterns)
    names = _names(model)
    empty = [pattern for pattern in patterns if not _matching(pattern, names, model.tuned)]
    if empty:
        raise ConfigError(f"nothing to freeze matches {', '.join(empty)}", f"names such as {_some(names)}")
    found = {id(names[name]) for pattern in patterns for name in _matching(pattern, names, model.tuned)}
    frozen = []
    for name, parameter in model.named_parameters():
        if id(parameter) in found:
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def table(model: Tunable, parts: Mapping[str, Named], groups: Mapping[str, ParameterGroup] | None = None) -> str:
    """Part of the model by group, with counts: what trains, and what does not.

    Args:
        parts: what `partition` gave.
        groups: with them, the learning rate and the streams of each group are shown too.
    """
    owner = {id(parameter): group for group, named in parts.items() for _, parameter in named}
    counts: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        row = counts.setdefault((_part(name), owner.get(id(parameter), "")), [0, 0])
        row[0] += 1
        row[1] += parameter.numel()
    head = ["part", "group", "tensors", "parameters", *(["lr", "streams"] if groups else [])]
    rows = [head]
    for (part, group), (tensors, numbers) in counts.items():
        row = [part, group or "(frozen)", f"{tensors:,}", f"{numbers:,}"]
        if groups:
            chosen = groups.get(group)
            row += [f"{chosen.lr:g}", ", ".join(chosen.streams) or "all"] if chosen else ["", ""]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    right = (2, 3)
    lines = [
        "  ".join(cell.rjust(width) if index in right else cell.ljust(width) for index, (cell, width) in
                  enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    total = sum(numbers for _, numbers in counts.values())
    trained = sum(numbers for (_, group), (_, numbers) in counts.items() if group)
    share = f" ({100 * trained / total:.3g} %)" if total else ""
    return "\n".join([*lines, f"{trained:,} of {total:,} parameters train{share}"])


def _claims(model: Tunable, groups: Mapping[str, ParameterGroup]) -> tuple[dict[int, list[str]], list[str]]:
    """Parameter id to the groups that claim it, and a line for every pattern that matches nothing."""
    names, tuned = _names(model), model.tuned
    claims: dict[int, list[str]] = {}
    wrong = []
    for group, settings in groups.items():
        mine: set[int] = set()
        for pattern in settings.match:
            found = _matching(pattern, names, tuned)
            mine |= {id(names[name]) for name in found}
            if not found and pattern.startswith("@"):
                known = ", ".join(f"@{name}" for name in registry.nearest(pattern[1:], list(tuned))) or "no tuners"
                wrong.append(f"{pattern} of group {group} stands for no parameter; known: {known}")
            elif not found:
                wrong.append(f"{pattern} of group {group} matches nothing; names are such as {_some(names, pattern)}")
        for parameter in mine:
            claims.setdefault(parameter, []).append(group)
    return claims, wrong


def _names(model: Tunable) -> dict[str, Parameter]:
    """All names, the second ones of tied weights too."""
    return dict(model.named_parameters(remove_duplicate=False))


def _matching(pattern: str, names: Mapping[str, Parameter], tuned: Mapping[str, Sequence[str]]) -> list[str]:
    if pattern.startswith("@"):
        return [name for name in tuned.get(pattern[1:], ()) if name in names]
    return [name for name in names if fnmatchcase(name, pattern)]


def _part(name: str) -> str:
    """The part of a model that a parameter belongs to: branches.NAME.encoder, branches.NAME.connector, llm, fusion."""
    pieces = name.split(".")
    return ".".join(pieces[:3]) if pieces[0] == "branches" else pieces[0]


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what}: {', '.join(names[:SHOWN])}{more}"]


def _some(names: Mapping[str, Parameter], pattern: str = "") -> str:
    """A few names, those with the same beginning as the pattern first."""
    head = pattern.split("*")[0]
    while head and not any(name.startswith(head) for name in names):
        head = head.rpartition(".")[0]
    alike = [name for name in names if name.startswith(head)] if head else list(names)
    return ", ".join(alike[:4]) or "(none)"
