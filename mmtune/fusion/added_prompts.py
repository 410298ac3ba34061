"""Media embeddings are added to learned prompts of the upper layers: LLaMA-Adapter V2 as it was released.

Source: the published code and weights (`llama_adapter_v2_multimodal7b`), which are not what the paper describes; see
`early_prompts` for that. Each of the last layers has L learned prompts; an item's L embeddings are added to them, the
same in every layer, and the sum joins the attention with a gate for each head that starts at zero. ImageBind-LLM is
the same with one prompt in every layer.

Where a segment has no item, `absent` says what happens; the released code shows an all-zero picture, which is
`default_image_branch`. Several items of a segment each come with the layer's prompts
of their own; the published code knows one item only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmtune.errors import ModelError
from mmtune.fusion._prompts import Gathered, apart, fitting, gather, run
from mmtune.fusion.base import Fusion, FusionConfig
from mmtune.layers.gated_prompts import GatedPrompts, Squash, uppermost
from mmtune.llm.base import LLM
from mmtune.types import Batch, Embeds


class Config(FusionConfig):
    name: str = "added_prompts"
    length: int = Field(default=10, ge=1)
    """Prompts of a layer, L; the connector must give as many tokens for an item."""
    layers: int | None = Field(default=None, ge=1)
    """Uppermost layers that have prompts; null is all but the lowest, as published for 7B."""
    gate: Squash = "tanh"
    """tanh: the gate's tanh multiplies what the prompts add, as published; raw: the gate itself."""
    extra_gate: bool = False
    """One more learned number for each layer on the gate, one at first: published weights with low-rank pairs."""
    spare_gates: bool = False
    """A gate in layers without prompts too, as published files have. It does nothing."""
    absent: Literal["plain", "prompts"] = "plain"
    """What a conversation without media meets: nothing, or the learned prompts alone."""
    default_image_branch: str | None = None
    """Name of a branch that is shown an all-zero picture where a conversation has none, as the released code does."""


class AddedPrompts(Fusion):
    """Keys: `prompts.weight` [layers*L,D], `prompts.gates.<layer>.weight` [H,1] and `.extra` [1,1] if asked for.

    Raises ConfigError when the model has fewer layers.
    """

    Config = Config
    config: Config
    uses_placeholders = False

    def __init__(self, config: Config, llm_width: int, depth: int, heads: int) -> None:
        super().__init__(config, llm_width, depth, heads)
        layers = uppermost(config.layers, depth)
        fitting(config.name, len(layers), depth)
        self.default_image_branch = config.default_image_branch
        spare = range(depth) if config.spare_gates else ()
        self.prompts = GatedPrompts(layers, heads, config.length, llm_width, config.gate, config.extra_gate, spare)

    def check(self, llm: LLM, num_tokens: Mapping[str, int] | None = None) -> None:
        """Raises ModelError when a tuner's prompts stand in the same layers, or items have another number of tokens."""
        apart(self.config.name, llm, self.prompts.layers)
        for branch, number in (num_tokens or {}).items():
            if number != self.config.length:
                raise self._other(branch, str(number))

    def forward(self, llm: LLM, batch: Batch, embeds: dict[str, Embeds], cache: Any = None) -> Tensor:
        """The text [B,T] with every segment's own prompts in the upper layers -> hidden [B,T,D].

        Raises ModelError when an item has another number of tokens than a layer has prompts.
        """
        self._check(embeds)
        given = gather(batch, embeds)
        if self.config.absent == "prompts":
            given = self._filled(batch, given)
        if given is None:
            return run(llm, batch, cache, self.prompts, None)
        items = given.tokens.unflatten(2, (-1, self.config.length))

        def at(layer: int) -> tuple[Tensor, Tensor]:
            prompts = items + self.prompts.prompts(layer).to(items.dtype)
            return prompts.flatten(2, 3), given.mask

        return run(llm, batch, cache, self.prompts, at)

    def _filled(self, batch: Batch, given: Gathered | None) -> Gathered:
        """One item of zeros for each segment without any."""
        length, weight = self.config.length, self.prompts.weight
        rows, owners = batch.tokens.shape[0], max(1, int(batch.segments.max()))
        if given is None:
            tokens = weight.new_zeros(rows, owners, length, self.llm_width)
            return Gathered(tokens, torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device))
        more = owners - given.tokens.shape[1]
        if more > 0:
            given.tokens = torch.cat([given.tokens, given.tokens.new_zeros(rows, more, *given.tokens.shape[2:])], 1)
            given.mask = torch.cat([given.mask, given.mask.new_zeros(rows, more, given.mask.shape[2])], 1)
        none = ~given.mask.any(-1, keepdim=True)
        first = torch.arange(given.mask.shape[2], device=given.mask.device) < length
        given.mask = given.mask | (none & first)
        return given

    def _check(self, embeds: dict[str, Embeds]) -> None:
        for branch, given in embeds.items():
            if given.tokens.shape[1] != self.config.length or not bool(given.mask.all()):
                num_tokens = given.mask.sum(1).tolist()
                raise self._other(branch, f"{min(num_tokens)} to {max(num_tokens)}")

    def _other(self, branch: str, num_tokens: str) -> ModelError:
        return ModelError(
            seen=f"branch {branch}: items of {num_tokens} tokens",
            expected=f"{self.config.length} of each item, the prompts of a layer",
            hint="give the connector as many queries as the fusion has prompts: `queries` and `length`",
        )
