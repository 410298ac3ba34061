"""The contract of connectors: `Features` of one branch to `Embeds` of the width of the language model.

How many places an item takes is plain arithmetic over its real frames, so the processor can ask without a model.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from mmtune.config import Config
from mmtune.types import Embeds, Features, FeatureShape


class ConnectorConfig(Config):
    """What every connector's config has."""

    name: str
    """Name of the connector: its file in this room, or package.module:Class."""


class Connector(nn.Module):
    """Features to embeddings."""

    Config: ClassVar[type[ConnectorConfig]] = ConnectorConfig

    def __init__(self, config: ConnectorConfig, shape: FeatureShape, llm_width: int) -> None:
        """
        Args:
            shape: what the encoder gives.
            llm_width: D.
        """
        super().__init__()
        self.config = config
        self.shape = shape
        self.llm_width = llm_width

    def calibrate(self, rms: float) -> None:
        """Told once, when a model is built, the root mean square of the LLM's word embeddings.

        A connector with an option for it (`match_scale`) starts its output at that scale.
        """

    @abstractmethod
    def tokens_out(self, frames: int) -> int:
        """K, the places that an item with `frames` real frames takes."""
        raise NotImplementedError

    def check(self, encoder: Any) -> None:
        """Raise ConfigError for an encoder whose features it cannot read, although their shape fits."""

    def num_tokens(self, item: Tensor, encoder: Any) -> int:
        """K of one item as the processor has it, prepared [F,...] or as stored features [F,N,E].

        That is `tokens_out` of its frames, but for a connector whose places depend on what is in them.
        """
        return self.tokens_out(item.shape[0])

    @abstractmethod
    def forward(self, features: Features) -> Embeds:
        """tokens [M,F,N,E] -> tokens [M,K,D] with K the most of the batch; `mask` marks the real places.

        An item's real places come first. A frame that is not real changes nothing.
        """
        raise NotImplementedError


Contract = Connector
