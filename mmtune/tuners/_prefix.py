"""Learned text before the text: prompt tuning, p-tuning and prefix tuning, as keys and values that all tokens see.

A causal model's keys and values of what stands first do not depend on what follows. So L virtual tokens before every
sample are the same as their keys and values in each layer, worked out once for a call and joined to those of every
segment: no length, label or slot moves, and packing and cached decoding go on as they are. Positions of the text begin
after the virtual tokens, as in `peft`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtune.llm._attention import Prefix
from mmtune.llm.base import LLM


class PrefixEncoder(nn.Module):
    """Virtual tokens of a language model: `llm.prefix`, keys `encoder.*`.

    Args:
        encoder: peft's module, int64 [1,L] -> embeddings [1,L,D], or with `direct` all keys and values, [1,L,n].
        length: L.
    """

    def __init__(self, encoder: nn.Module, length: int, direct: bool) -> None:
        super().__init__()
        self.encoder, self.length, self.direct = encoder, length, direct

    def keys_and_values(self, llm: LLM) -> Prefix:
        """Keys and values [1,h,L,d] of each layer."""
        device = next(self.parameters()).device
        positions = torch.arange(self.length, device=device)[None]
        made = self.encoder(positions)
        return self._split(made, llm) if self.direct else llm.keys_and_values(made, positions)

    @staticmethod
    def _split(made: Tensor, llm: LLM) -> Prefix:
        split = made[0].unflatten(-1, (2 * llm.depth, llm.kv_heads, llm.head_width))
        both = split.permute(1, 2, 0, 3)[:, None]  # [2*layers,1,h,L,d]
        return {layer: (both[2 * layer], both[2 * layer + 1]) for layer in range(llm.depth)}
