"""A stack of linear layers with exact GELU between them on every token, as in LLaVA 1.5 (arXiv 2310.03744)."""

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.connectors._scale import ScaledConfig
from mmtune.connectors._tokenwise import Tokenwise
from mmtune.types import FeatureShape


class Config(ScaledConfig):
    name: str = "mlp"
    depth: int = Field(default=2, ge=1)
    """Linear layers; 2 is LLaVA 1.5's `mlp2x_gelu`, 1 is a single matrix."""
    hidden: int | None = None
    """Width between the layers; null is the LLM's width, as published."""


class Mlp(Tokenwise):
    """Keys: `layers.0.weight` [hidden,E] ... `layers.{depth-1}.weight` [D,hidden], each with a bias."""

    Config = Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        widths = [shape.width, *[config.hidden or llm_width] * (config.depth - 1), llm_width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def project(self, tokens: Tensor) -> Tensor:
        first, *rest = self.layers
        tokens = first(tokens)
        for layer in rest:
            tokens = layer(F.gelu(tokens))
        return tokens
