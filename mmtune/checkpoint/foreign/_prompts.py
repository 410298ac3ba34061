"""Prompts and gates as the LLaMA-Adapter family stores them, for the tuner and for the fusions alike.

One table `adapter_query.weight` [layers*L,D], the lowest layer with prompts first; in every layer of the model a gate
[1,H,1,1], also where there are no prompts; beside low-rank pairs a scalar `new_gate` [1,1,1,1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmtune.checkpoint.keymap import Rule
from mmtune.errors import CheckpointError

TABLE = "adapter_query.weight"
GATE, EXTRA = "attention.gate", "attention.new_gate"


def flat(gate: Tensor) -> Tensor:
    """[1,H,1,1] -> [H,1]"""
    return gate.reshape(-1, 1)


def unflat(gate: Tensor) -> Tensor:
    """[H,1] -> [1,H,1,1]"""
    return gate.reshape(1, -1, 1, 1)


def rules(theirs: str, ours: str, table: str = TABLE, extra: bool = False) -> list[Rule]:
    """Rules of prompts and gates.

    Args:
        theirs: what stands before the names of layers, as `llama.`.
        ours: full name of the module that holds them, with a dot: `llm.prompts.` or `fusion.prompts.`.
        table: name of the table of prompts, whole.
        extra: whether there is the further scalar.
    """
    layer = f"{theirs}layers.{{i}}."
    found = [
        Rule(table, f"{ours}weight"),
        Rule(f"{layer}{GATE}", f"{ours}gates.{{i}}.weight", into=flat, out=unflat),
    ]
    if extra:
        found.append(Rule(f"{layer}{EXTRA}", f"{ours}gates.{{i}}.extra", into=flat, out=unflat))
    return found


def layers(tensors: Mapping[str, Tensor], length: int, table: str = TABLE) -> int | None:
    """Layers with prompts, of `length` each, as far as the table tells; what does not fit is found by the names."""
    return max(1, tensors[table].shape[0] // length) if table in tensors else None


def known(tensors: Mapping[str, Tensor], marks: Sequence[str], origin: str, kind: str) -> None:
    """Raise CheckpointError where no name holds one of `marks`: a file of another kind."""
    if not any(mark in name for name in tensors for mark in marks):
        raise CheckpointError(
            f"{origin}: {', '.join(sorted(tensors)[:3]) or 'nothing'} and the like, but no {' or '.join(marks)}",
            kind,
            "other files of the family are kinds of their own: mmtune import --list",
        )
