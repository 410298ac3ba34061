"""A two-way table of names: how a published checkpoint spells its tensors, and how we do.

    KeyMap([
        Rule("model.layers.{i}.{rest*}", "llm.model.layers.{i}.{rest*}"),
        Rule("mm_projector.{i}.weight", "branches.sight.connector.layers.{i}.weight"),
    ])

`{name}` stands for one piece between dots, `{name*}` for one or more. A rule that matches nothing, a name without a
rule and a name with two rules are mistakes, and all of them are reported together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mmtune.errors import CheckpointError

Turn = Callable[[Tensor], Tensor]

_FIELD = re.compile(r"\{(\w+)(\*?)\}")


@dataclass(frozen=True)
class Rule:
    """One line of the table: `theirs` <-> `ours`, with a function for each direction where values change too."""

    theirs: str
    ours: str
    into: Turn | None = None
    """Applied to a tensor on import; `out` must be its inverse."""
    out: Turn | None = None
    optional: bool = False
    """Whether the rule may match nothing: published checkpoints of one kind differ in such tensors."""
    _patterns: tuple[re.Pattern[str], re.Pattern[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if {m for m, _ in _FIELD.findall(self.theirs)} != {m for m, _ in _FIELD.findall(self.ours)}:
            raise ValueError(f"both sides of a rule need the same fields: {self.theirs!r}, {self.ours!r}")
        if (self.into is None) != (self.out is None):
            raise ValueError(f"the rule for {self.theirs!r} turns values in one direction only")
        object.__setattr__(self, "_patterns", (_compile(self.theirs), _compile(self.ours)))

    def match(self, name: str, reverse: bool) -> str | None:
        """The name on the other side, or None when this rule is not about `name`."""
        found = self._patterns[reverse].fullmatch(name)
        if not found:
            return None
        target = self.theirs if reverse else self.ours
        return _FIELD.sub(lambda m: found[m[1]], target)


def _compile(pattern: str) -> re.Pattern[str]:
    text, end = "", 0
    seen: set[str] = set()
    for found in _FIELD.finditer(pattern):
        text += re.escape(pattern[end : found.start()])
        name, many = found.groups()
        body = r"[^.]+(?:\.[^.]+)*" if many else r"[^.]+"
        text += f"(?P={name})" if name in seen else f"(?P<{name}>{body})"
        seen.add(name)
        end = found.end()
    return re.compile(text + re.escape(pattern[end:]))


class KeyMap:
    """Rules of one published layout, read in both directions."""

    def __init__(self, rules: Sequence[Rule], ignore: Sequence[str] = ()) -> None:
        self.rules = tuple(rules)
        self.ignore = tuple(_compile(pattern) for pattern in ignore)
        """Names on their side that are ignored, such as stored position counts."""

    def into(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their names -> ours.

        Raises:
            CheckpointError: names without a rule, names with several, rules without a name, listed together.
        """
        return self._apply(tensors, reverse=False)

    def out(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names -> theirs. Raises as `into` does."""
        return self._apply(tensors, reverse=True)

    def _apply(self, tensors: Mapping[str, Tensor], reverse: bool) -> dict[str, Tensor]:
        traced = self.trace(tensors, reverse)
        if mistakes := traced.strange + traced.idle:
            raise CheckpointError(
                seen=f"{len(mistakes)} names do not fit the table: " + "; ".join(mistakes),
                expected="every tensor matched by exactly one rule, and every rule by a tensor",
                hint="the file is of another kind or version than this importer reads",
            )
        return traced.tensors

    def trace(self, tensors: Mapping[str, Tensor], reverse: bool = False) -> Traced:
        """As `into` (or `out`, with `reverse`), but mistakes are returned beside the tensors that have a new name."""
        result = Traced()
        used: set[int] = set()
        for name, tensor in tensors.items():
            if not reverse and any(pattern.fullmatch(name) for pattern in self.ignore):
                continue
            hits = [(i, target) for i, rule in enumerate(self.rules) if (target := rule.match(name, reverse))]
            if len(hits) != 1:
                result.strange.append(f"{name}: {'no rule' if not hits else f'{len(hits)} rules'}")
            used.update(i for i, _ in hits)
            for i, target in hits[:1]:
                if target in result.tensors:
                    result.strange.append(f"{name}: another tensor already became {target}")
                turn = self.rules[i].out if reverse else self.rules[i].into
                try:
                    result.tensors[target] = turn(tensor) if turn else tensor
                except (RuntimeError, ValueError, IndexError) as error:  # a shape that cannot be turned
                    what = str(error).splitlines()[0]
                    result.strange.append(f"{name}: {list(tensor.shape)} cannot be turned ({what})")
                    result.tensors[target] = tensor
                result.names[target] = name
        for i, rule in enumerate(self.rules):
            if i not in used and not rule.optional:
                result.idle.append(f"{rule.ours if reverse else rule.theirs}: the rule matches nothing")
        return result

    def theirs(self, ours: str) -> str | None:
        """The published name of one of our names; None when no rule has it."""
        return next((name for rule in self.rules if (name := rule.match(ours, reverse=True))), None)


@dataclass
class Traced:
    """The result of a table for some tensors, mistakes included."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """New name to tensor."""
    names: dict[str, str] = field(default_factory=dict)
    """New name to old."""
    strange: list[str] = field(default_factory=list)
    """Names without a rule, with several, or of a shape that cannot be converted."""
    idle: list[str] = field(default_factory=list)
    """Required rules that matched no tensor."""
