"""Prompts of attention layers with zero-initialised gates: what is learned, without the attention itself.

LLaMA-Adapter (arXiv 2303.16199), section 3.2, and V2 (arXiv 2304.15010): prompts join some layers of a frozen model,
each layer with prompts of its own, and one gate for each head says how much of them is let in. Gates start at zero, so
a fresh model computes what it did. One class serves learned prompts (a tuner), media as prompts (early fusion) and
media added to learned prompts (the published V2).

The paper writes the gate as it is, the training code takes its tanh, and the first release's inference code does not.
So it is an option, and the one that a checkpoint was made for belongs to the checkpoint.

Letters: H heads, L prompt length, D width, N layers of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Squash = Literal["tanh", "raw"]


class Gate(nn.Module):
    """One number for each head: keys `weight` [H,1], zero at first, and `extra` [1,1], one at first, if asked for."""

    def __init__(self, heads: int, squash: Squash = "tanh", extra: bool = False) -> None:
        super().__init__()
        self.squash = squash
        self.weight = nn.Parameter(torch.zeros(heads, 1))
        self.extra = nn.Parameter(torch.ones(1, 1)) if extra else None

    def forward(self) -> Tensor:
        """What the prompts' part of the output is multiplied by, [H,1]."""
        value = self.weight.tanh() if self.squash == "tanh" else self.weight
        return value if self.extra is None else value * self.extra


class GatedPrompts(nn.Module):
    """Prompts and gates of some layers.

    Keys: `weight` [layers*L,D], the lowest layer's L prompts first (none where prompts come from media alone), and
    `gates.<layer>.*`, see `Gate`.

    Args:
        layers: numbers of the layers that prompts join, 0 is the lowest.
        heads: H.
        length: L; none for no learned prompts.
        width: D.
        extra: a learned scalar on every gate; published checkpoints with low-rank pairs have it, always one.
        spare: layers that get a gate and no prompts. It does nothing; published checkpoints hold one in every layer.
    """

    def __init__(
        self,
        layers: Sequence[int],
        heads: int,
        length: int | None = None,
        width: int = 0,
        squash: Squash = "tanh",
        extra: bool = False,
        spare: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.layers = tuple(sorted(layers))
        self.length = length
        self.weight: nn.Parameter | None = None
        if length is not None:
            self.weight = nn.Parameter(torch.randn(len(self.layers) * length, width))
        every = sorted({*self.layers, *spare})
        self.gates = nn.ModuleDict({str(layer): Gate(heads, squash, extra) for layer in every})

    @property
    def spare(self) -> list[int]:
        """Layers with a gate and no prompts."""
        return [int(layer) for layer in self.gates if int(layer) not in self.layers]

    def gate(self, layer: int) -> Tensor:
        """[H,1]"""
        return self.gates[str(layer)]()

    def prompts(self, layer: int) -> Tensor:
        """The learned prompts of a layer, [L,D]."""
        index = self.layers.index(layer)
        return self.weight[index * self.length : (index + 1) * self.length]

    def zero_term(self) -> Tensor:
        """Zero, tied to every parameter: keeps what a batch does not use in the backward pass, with a zero gradient."""
        return sum((p.sum() * 0 for p in self.parameters()), torch.zeros((), device=next(self.parameters()).device))


def uppermost(layers: int | None, depth: int) -> range:
    """Numbers of the uppermost `layers` of `depth`; none is all but the lowest, as published for LLaMA-Adapter V2."""
    return range(1 if layers is None else depth - layers, depth)
