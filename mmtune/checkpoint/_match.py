"""Compares tensors of published files with those of a model: names and shapes, all mismatches in one error.

Both sides may be on the meta device, so that a model of any size is compared before a byte of it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmtune import dtypes
from mmtune.checkpoint.foreign.base import Imported
from mmtune.checkpoint.keymap import KeyMap
from mmtune.errors import CheckpointError

LISTED = 16
"""Unexpected names that an error lists, and as many missing ones."""


@dataclass
class Match:
    """What sources gave, under our names."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Ours to theirs."""
    tables: list[KeyMap] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    @classmethod
    def trace(cls, imported: Imported) -> Match:
        """All pieces through their tables; unexpected names are kept for `compare`."""
        found = cls()
        for piece in imported.pieces:
            traced = piece.table.trace(piece.tensors)
            found.tables.append(piece.table)
            found.origins.append(piece.origin)
            found.wrong += [f"unexpected: {line}" for line in traced.strange]
            found.idle += [f"missing: {line}" for line in traced.idle]
            twice = sorted(found.tensors.keys() & traced.tensors.keys())
            found.wrong += [f"given twice: {traced.names[name]} ({piece.origin})" for name in twice]
            found.tensors |= traced.tensors
            found.names |= traced.names
        return found

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of a base part by their name in its file."""
        return {n.partition(":")[2]: t for n, t in self.tensors.items() if n.startswith(f"{name}:")}

    def theirs(self, ours: str) -> str:
        """The published spelling of one of our names, where a table has it."""
        known = (name for table in self.tables if (name := table.theirs(ours)))
        return self.names.get(ours) or next(known, ours)

    def compare(self, wanted: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
        """Raise one CheckpointError for everything missing, unexpected, misshapen or given twice.

        Args:
            aliases: second name of a tied weight -> its first, which is in `wanted`.
        """
        for alias, first in aliases.items():
            self._untie(alias, first)
        missing = [f"missing: {self.theirs(name)} {list(wanted[name].shape)}" for name in wanted.keys() - self.tensors]
        for name in self.tensors.keys() - wanted.keys():
            self.wrong.append(f"unexpected: {self.theirs(name)} {list(self.tensors[name].shape)}")
        for name in wanted.keys() & self.tensors.keys():
            ours, theirs = wanted[name], self.tensors[name]
            if ours.shape != theirs.shape:
                self.wrong.append(
                    f"misshapen: {self.theirs(name)} is {list(theirs.shape)}, the model has {list(ours.shape)}"
                )
            elif ours.is_floating_point() != theirs.is_floating_point():
                self.wrong.append(f"misshapen: {self.theirs(name)} is {theirs.dtype}, the model has {ours.dtype}")
        lists = [sorted(self.wrong), sorted(missing) or sorted(self.idle)]
        if count := sum(map(len, lists)):
            # both kinds are shown: many missing names must not hide the unexpected ones, nor the other way round
            lines = [line for one in lists for line in _shortened(one)]
            raise CheckpointError(
                "\n  ".join([f"{', '.join(self.origins) or 'the sources'}: {count} names do not fit", *lines]),
                "every tensor of the model, in its shape, and no other",
                "check that the files are whole, of one model, and of the LAYOUT that was named",
            )

    def require_finite(self) -> None:
        """Raise CheckpointError for NaN and infinity among what is taken, in the published spelling."""
        theirs = {self.theirs(name): tensor for name, tensor in self.tensors.items()}
        dtypes.require_finite(theirs, ", ".join(self.origins) or "the sources")

    def _untie(self, alias: str, first: str) -> None:
        """A tied weight may be stored under either name, or under both if they are equal."""
        if alias not in self.tensors:
            return
        tensor, name = self.tensors.pop(alias), self.names.pop(alias, alias)
        held = self.tensors.setdefault(first, tensor)
        self.names.setdefault(first, name)
        if held is not tensor and not (held.is_meta or (held.shape == tensor.shape and torch.equal(held, tensor))):
            self.wrong.append(f"misshapen: {name} differs from {self.theirs(first)}, to which config.json ties it")


def state_of(module: nn.Module, part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """state_dict under the names of a part, tied weights once; and second names of tied weights to their first."""
    first: dict[int, str] = {}
    state, aliases = {}, {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        name = f"{part}:{key}"
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            state[name] = tensor
    return state, aliases


def _shortened(lines: list[str]) -> list[str]:
    return lines[:LISTED] + ([f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else [])
