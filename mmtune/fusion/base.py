"""The contract of fusions: how the embeddings of media enter the language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mmtune.config import Config
from mmtune.llm.base import LLM
from mmtune.types import Batch, Embeds


class FusionConfig(Config):
    """What every fusion's config has."""

    name: str
    """Name of the fusion: its file in this room, or package.module:Class."""


class Fusion(nn.Module):
    """Embeddings and tokens to hidden states."""

    Config: ClassVar[type[FusionConfig]] = FusionConfig
    uses_placeholders: ClassVar[bool] = True
    """Whether media items occupy K positions in the text, or none."""
    through_llm: ClassVar[bool] = True
    """Whether a gradient goes through the language model; where none does, nothing of its layers is kept for one."""
    default_image_branch: str | None = None
    """Branch that is shown an all-zero picture where a conversation has none for it; none for no such thing."""

    def __init__(self, config: FusionConfig, llm_width: int, depth: int, heads: int) -> None:
        """
        Args:
            llm_width: D. depth: layers of the LLM. heads: H.
        """
        super().__init__()
        self.config = config
        self.llm_width = llm_width
        self.depth = depth
        self.heads = heads

    def check(self, llm: LLM, num_tokens: Mapping[str, int] | None = None) -> None:
        """Told once, when a model is built, the language model with its tuners; raises ModelError when it cannot be.

        Args:
            num_tokens: branch to K, the tokens of an item of one frame.
        """

    @abstractmethod
    def forward(self, llm: LLM, batch: Batch, embeds: dict[str, Embeds], cache: Any = None) -> Tensor:
        """Run the LLM over a batch whose branches gave `embeds` -> hidden [B,T,D].

        Nothing set on the LLM's modules outlives the call.
        """
        raise NotImplementedError


Contract = Fusion
