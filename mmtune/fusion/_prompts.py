"""Shared by fusions that hand media to attention as prompts: items laid out by the segment that they belong to.

An item takes no tokens of the text; its slot says whose it is. All items of a segment stand one after another in its
prompts, in the order of branches by name and of items in the batch. A segment without an item has no prompt, and the
term of the prompts is left out for its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmtune.errors import ConfigError, ModelError
from mmtune.layers.gated_prompts import GatedPrompts
from mmtune.llm._attention import AttentionTerm, Call, prompt_term
from mmtune.llm.base import LLM
from mmtune.types import Batch, Embeds


@dataclass
class Gathered:
    """The items of a batch as prompts."""

    tokens: Tensor
    """[B,S,P,D], segments 1..S; P is the most prompts of a segment."""
    mask: Tensor
    """bool [B,S,P]"""


def gather(batch: Batch, embeds: dict[str, Embeds]) -> Gathered | None:
    """Items of all branches by row and segment; None when there is no item.

    Raises ModelError when items and slots do not belong together.
    """
    plan: list[tuple[str, Tensor, Tensor]] = []
    used: dict[tuple[int, int], int] = {}
    for branch in sorted(embeds):
        slots = batch.slots.get(branch)
        lines = [] if slots is None else slots[:, :2].tolist()
        if len(lines) != embeds[branch].tokens.shape[0] or any(segment < 1 for _, segment in lines):
            raise ModelError(
                seen=f"branch {branch}: {embeds[branch].tokens.shape[0]} items, slots {lines[:4]}",
                expected="one slot for each item, in a segment from 1 on",
                hint="collate media and slots together",
            )
        num_tokens, starts = embeds[branch].tokens.shape[1], []
        for row, segment in lines:
            starts.append(used.get((row, segment), 0))
            used[row, segment] = starts[-1] + num_tokens
        if lines:
            plan.append((branch, torch.tensor(lines), torch.tensor(starts)))
    if not used:
        return None
    some = embeds[plan[0][0]].tokens
    shape = (batch.tokens.shape[0], max(segment for _, segment in used), max(used.values()))
    tokens = some.new_zeros(*shape, some.shape[-1])
    mask = torch.zeros(shape, dtype=torch.bool, device=some.device)
    for branch, owners, starts in plan:
        given = embeds[branch]
        row, segment, start = (x.to(some.device)[:, None] for x in (owners[:, 0], owners[:, 1] - 1, starts))
        offset = start + torch.arange(given.tokens.shape[1], device=some.device)
        tokens = tokens.index_put((row, segment, offset), given.tokens.to(tokens.dtype))
        mask[row, segment, offset] = given.mask
    return Gathered(tokens, mask)


def term(prompts: Tensor, mask: Tensor | None, gate: Tensor) -> AttentionTerm:
    """What prompts [B,S,P,D] with mask [B,S,P] add to an attention module, for one call."""

    def extra(module: nn.Module, query: Tensor, call: Call) -> Tensor:
        return prompt_term(module, query, prompts, mask, call.segments, gate)

    return extra


def run(
    llm: LLM, batch: Batch, cache: object, table: GatedPrompts, at: Callable[[int], tuple[Tensor, Tensor | None]] | None
) -> Tensor:
    """The LLM over the batch with prompts in the layers of `table` -> hidden [B,T,D].

    `at` gives prompts and mask of a layer; without it no prompt joins, and the parameters are tied to the result.
    """
    attention_terms = {} if at is None else {layer: [term(*at(layer), table.gate(layer))] for layer in table.layers}
    segments = batch.segments
    if cache is not None and bool((segments == 1).all()):
        segments = None
    hidden = llm.forward(llm.embed(batch.tokens), batch.positions, segments, cache, attention_terms=attention_terms)
    if torch.is_grad_enabled() and (at is None or table.spare):
        hidden = hidden + table.zero_term().to(hidden.dtype)
    return hidden


def fitting(name: str, layers: int, depth: int) -> None:
    """Raises ConfigError when a model of `depth` layers has no such number of them."""
    if not 1 <= layers <= depth:
        raise ConfigError(f"fusion `{name}` in {layers} layers of a model that has {depth}", f"1 to {depth}")


def apart(name: str, llm: LLM, layers: tuple[int, ...]) -> None:
    """Raises ModelError when the LLM takes no extra terms, or a tuner's prompts stand in one of these layers."""
    llm.require("attention_terms", f"fusion `{name}`")
    both = sorted(set(layers) & set(llm.prompts.layers)) if llm.prompts is not None else []
    if both:
        raise ModelError(
            seen=f"media and the tuner `prompts` both in layers {', '.join(map(str, both))} of {llm.depth}",
            expected="media in the lowest layers, learned prompts above them: together at most all layers",
            hint=f"lower `layers` of the fusion `{name}` or of the tuner",
        )
