"""Learned prompts with zero-initialised gates in the upper layers: LLaMA-Adapter V1, and the late part of V2's paper.

Source: arXiv 2303.16199, section 3.2. Each of the last layers has prompts of its own. Their keys and values are the
layer's own projections, unrotated and without the norm before the layer; they have a softmax of their own, times a
gate for each head. Gates start at zero, so a fresh model computes what it did, to the bit.

`peft` has the method as adaption_prompt, which patches the attention of two model classes and has one gate a layer;
so it is written here, through the attention function, for any decoder.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.errors import ModelError
from mmtune.layers.gated_prompts import GatedPrompts, Squash, uppermost
from mmtune.llm._attention import Call, prompt_term
from mmtune.llm.base import LLM
from mmtune.tuners.base import Tuner, TunerConfig


class Config(TunerConfig):
    name: str = "prompts"
    length: int = Field(default=10, ge=1)
    """Prompts of a layer, L."""
    layers: int | None = Field(default=None, ge=1)
    """Uppermost layers that have prompts; null is all but the lowest. Published: 30 of 32 (V1), 31 (V2)."""
    gate: Squash = "tanh"
    """tanh: the gate's tanh multiplies what the prompts add, as in training; raw: the gate itself, as the inference
    code of the first release takes it."""
    extra_gate: bool = False
    """One more learned number for each layer on the gate, one at first."""
    spare_gates: bool = False
    """A gate in layers without prompts too, as published files have. It does nothing."""


class PromptTerm(nn.Module):
    """The term of one layer; prompts and gate belong to the model's `prompts`, and so do their names."""

    def __init__(self, table: GatedPrompts, layer: int) -> None:
        super().__init__()
        self._table, self.layer = (table,), layer  # in a tuple, so that the table is not registered once more here

    def forward(self, module: nn.Module, query: Tensor, call: Call) -> Tensor:
        """Rotated queries [B,H,T,d] -> [B,T,H,d]"""
        table = self._table[0]
        prompts = table.prompts(self.layer)[None, None]
        return prompt_term(module, query, prompts, None, call.segments, table.gate(self.layer))


class Prompts(Tuner):
    """Adds `prompts.weight` [layers*L,D] and `prompts.gates.<layer>.weight` [H,1] to the language model."""

    Config = Config
    config: Config

    def apply(self, llm: LLM) -> list[str]:
        """Raises ModelError when the model has fewer layers, takes no extra terms or has such prompts already."""
        config = self.config
        layers = uppermost(config.layers, llm.depth)
        if not 1 <= len(layers) <= llm.depth or layers[0] < 0:
            raise ModelError(
                seen=f"prompts in {config.layers or len(layers)} layers of a model that has {llm.depth}",
                expected=f"1 to {llm.depth}",
            )
        llm.require("attention_terms", "the tuner `prompts`")
        if llm.prompts is not None or any(str(layer) in llm.attention_terms for layer in layers):
            raise ModelError(
                seen="the tuner `prompts` on a language model that has such terms already", expected="this tuner once"
            )
        spare = range(llm.depth) if config.spare_gates else ()
        device = next(llm.parameters()).device
        with torch.device(device):
            table = GatedPrompts(
                layers, llm.heads, config.length, llm.width, config.gate, config.extra_gate, spare
            ).requires_grad_(False)
        llm.prompts = table
        for layer in layers:
            llm.attention_terms[str(layer)] = PromptTerm(table, layer)
        return [f"prompts.{name}" for name, _ in table.named_parameters()]
