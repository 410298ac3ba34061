"""Media embeddings are gated prompts of the first layers: LLaMA-Adapter V2 as its paper describes it.

Source: arXiv 2304.15010, section 3.3: in the first K layers the text also attends to the media's K' embeddings, by the
layer's own matrices and a softmax of its own, times a gate for each head that starts at zero. Learned prompts stand
in upper layers, by the tuner `prompts`; the two never meet (K + L <= N). The paper gives no norm or position for the
media's embeddings; there is none here.

As published: `layers: 1`, a connector with 20 queries, and the tuner in the 31 layers above. A conversation without
media goes through the plain model. No text position is taken, so length and positions stay those of the text.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from mmtune.fusion._prompts import apart, fitting, gather, run
from mmtune.fusion.base import Fusion, FusionConfig
from mmtune.layers.gated_prompts import GatedPrompts, Squash
from mmtune.llm.base import LLM
from mmtune.types import Batch, Embeds


class Config(FusionConfig):
    name: str = "early_prompts"
    layers: int = Field(default=1, ge=1)
    """Lowest layers that attend to the media, K."""
    gate: Squash = "tanh"
    """tanh: the gate's tanh multiplies what the media add; raw: the gate itself."""


class EarlyPrompts(Fusion):
    """Keys: `prompts.gates.<layer>.weight` [H,1]. Raises ConfigError when the model has fewer layers."""

    Config = Config
    uses_placeholders = False

    def __init__(self, config: Config, llm_width: int, depth: int, heads: int) -> None:
        super().__init__(config, llm_width, depth, heads)
        fitting(config.name, config.layers, depth)
        self.prompts = GatedPrompts(range(config.layers), heads, squash=config.gate)

    def check(self, llm: LLM, num_tokens: Mapping[str, int] | None = None) -> None:
        """Raises ModelError when a tuner's prompts stand in the same layers."""
        apart(self.config.name, llm, self.prompts.layers)

    def forward(self, llm: LLM, batch: Batch, embeds: dict[str, Embeds], cache: Any = None) -> Tensor:
        """The text [B,T] with every segment's own media in the first layers -> hidden [B,T,D]."""
        given = gather(batch, embeds)
        at = None if given is None else lambda layer: (given.tokens, given.mask)
        return run(llm, batch, cache, self.prompts, at)
