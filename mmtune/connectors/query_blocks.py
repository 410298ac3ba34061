"""Learned queries before the encoder's tokens, together through self-attention blocks: LLaMA-Adapter V2.

Source: the published code (`llama_adapter_v2_multimodal7b`), which is where arXiv 2304.15010 leaves its "visual
projection layers" open. A matrix and a norm bring the tokens to the width of the blocks; queries come first; what the
blocks make of the queries goes through one more matrix and norm. Any item takes as many places as there are queries.

Published: 10 queries, width 768, 8 blocks of 16 heads, over all 257 tokens of CLIP ViT-L/14 after its last norm and
output matrix (encoder `clip` with `layer: -1, tokens: all, norm: true, project: true`). It knows images only; of a
video all frames' tokens stand after the queries, and nothing says which frame came first.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.connectors._scale import OutputScale, ScaledConfig
from mmtune.connectors.base import Connector
from mmtune.errors import ConfigError
from mmtune.layers.blocks import Block
from mmtune.layers.norm import LayerNormFloat32
from mmtune.types import Embeds, Features, FeatureShape


class Config(ScaledConfig):
    name: str = "query_blocks"
    queries: int = Field(default=10, ge=1)
    """Learned queries, the places that any item takes. Published: 10; the paper: 20."""
    width: int = Field(default=768, ge=1)
    """Width of the blocks."""
    depth: int = Field(default=8, ge=0)
    """Number of blocks."""
    heads: int = Field(default=16, ge=1)
    """Attention heads; divides `width`."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Width of the feed-forward, in widths of the block."""
    out_norm: bool = True
    """Layer norm over the output, as published."""


class QueryBlocks(Connector):
    """Keys: `proj` [width,E], `proj_norm`, `query` [Q,width], `blocks.N.*`, `out` [D,width], and `scale.norm`.

    Raises ConfigError when the heads do not divide the width.
    """

    Config = Config
    config: Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        if config.width % config.heads:
            raise ConfigError(f"`query_blocks` of width {config.width} with {config.heads} heads", "a divisor")
        self.proj = nn.Linear(shape.width, config.width)
        self.proj_norm = LayerNormFloat32(config.width)
        self.query = nn.Parameter(torch.randn(config.queries, config.width))
        hidden = int(config.width * config.mlp_ratio)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, hidden) for _ in range(config.depth))
        self.out = nn.Linear(config.width, llm_width)
        self.scale = OutputScale(config, llm_width)

    def calibrate(self, rms: float) -> None:
        self.scale.calibrate(rms)

    def tokens_out(self, frames: int) -> int:
        """Places K of an item with `frames` real frames: always the number of queries."""
        return self.config.queries

    def tokens(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """What goes into the blocks: queries, then all frames' tokens [M,Q+F*N,width]; bool of what is real, or none
        where all is."""
        x = self.proj_norm(self.proj(features.tokens.to(self.proj.weight.dtype)))
        items, _, each = x.shape[:3]
        x = torch.cat([self.query.expand(items, -1, -1), x.flatten(1, 2)], dim=1)
        if bool(features.frame_mask.all()):
            return x, None  # attention is faster without a mask
        real = features.frame_mask.repeat_interleave(each, dim=1)
        return x, torch.cat([real.new_ones(items, self.config.queries), real], dim=1)

    def forward(self, features: Features) -> Embeds:
        """[M,F,N,E] -> tokens [M,Q,D], every token real."""
        x, mask = self.tokens(features)
        for block in self.blocks:
            x = block(x, mask)
        out = self.scale(self.out(x[:, : self.config.queries]))
        return Embeds(out, torch.ones(out.shape[:2], dtype=torch.bool, device=out.device))
