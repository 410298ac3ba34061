"""Media embeddings fill the tokens that the processor kept for them in the text: LLaVA, Video-LLaMA, PLLaVA.

The language model then sees one sequence of embeddings. Nothing here changes a length or a position: an item whose
connector gives another number of tokens than its slot has is an error, never a cut.
"""

from typing import Any

import torch
from torch import Tensor

from mmtune.errors import ModelError
from mmtune.fusion.base import Fusion, FusionConfig
from mmtune.llm.base import LLM
from mmtune.types import Batch, Embeds


class Config(FusionConfig):
    name: str = "tokens"


class Tokens(Fusion):
    """No parameters."""

    Config = Config
    uses_placeholders = True

    def forward(self, llm: LLM, batch: Batch, embeds: dict[str, Embeds], cache: Any = None) -> Tensor:
        """Text embeddings [B,T,D] with the items written into their slots, through the LLM -> hidden [B,T,D].

        Raises ModelError when an item gives another number of tokens than its slot has.
        """
        x = llm.embed(batch.tokens)
        for branch in sorted(embeds):
            x = write(x, branch, embeds[branch], batch.slots.get(branch))
        segments = batch.segments
        if cache is not None and bool((segments == 1).all()):
            segments = None
        return llm.forward(x, batch.positions, segments, cache)


def write(x: Tensor, branch: str, embeds: Embeds, slots: Tensor | None) -> Tensor:
    """The real tokens of each item, in order, at [start, start + length) of the item's row.

    x [B,T,D], embeds [M,K,D], slots int64 [M,4] = row, segment, start, length -> [B,T,D]
    """
    if slots is None or not slots.numel():
        # A blank item, there so that every process runs the same modules: it reaches the loss multiplied by zero.
        return x + embeds.tokens.sum().to(x.dtype) * 0
    if slots.device != x.device:
        slots = slots.to(x.device)
    row, start, length = slots[:, 0], slots[:, 2], slots[:, 3]
    given = embeds.mask.sum(dim=1)
    _check(branch, x, slots, given)
    ends = length.cumsum(0)
    item = torch.repeat_interleave(torch.arange(len(slots), device=x.device), length)
    offset = torch.arange(item.shape[0], device=x.device) - (ends - length)[item]
    return x.index_put((row[item], start[item] + offset), embeds.tokens[embeds.mask].to(x.dtype))


def _check(branch: str, x: Tensor, slots: Tensor, given: Tensor) -> None:
    if len(slots) != len(given):
        raise ModelError(
            seen=f"branch {branch}: {len(given)} items for {len(slots)} slots",
            expected="one slot for each item",
            hint="collate media and slots together",
        )
    length, outside = slots[:, 3], slots[:, 2] + slots[:, 3] > x.shape[1]
    wrong = (given != length) | outside
    if bool(wrong.any()):
        m = int(wrong.nonzero()[0, 0])
        row, _, start, num_tokens = slots[m].tolist()
        raise ModelError(
            seen=f"branch {branch}, item {m}: {int(given[m])} tokens from the connector, slot of {num_tokens} at "
            f"{start} in row {row} of {x.shape[1]} tokens",
            expected="as many tokens as `tokens_out` of the connector says, inside the row",
            hint="build the examples with the same encoder and connector settings as the model",
        )
