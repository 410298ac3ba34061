"""Learned queries over the tokens of each frame alone, then one matrix: the Q-Former of BLIP-2, to be trained.

Source: arXiv 2301.12597, section 3.3: twelve layers, every second one looking at the picture, and a linear layer into
the language model. Frames follow one another, so a video of F frames takes F times the queries, and nothing tells the
frames apart, as InstructBLIP reads videos; `video_qformer` reads all frames together.

Keys: `query_tokens` [1,Q,width], `qformer.*`, `proj.*` [D,width]; published as `query_tokens`, `Qformer.bert.` and
`llm_proj.`, `opt_proj.` or `t5_proj.`. As published, `out_norm` and `match_scale` are off.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.connectors._scale import ScaledConfig
from mmtune.connectors._tokenwise import Tokenwise
from mmtune.layers.qformer import INIT_STD, QFormer
from mmtune.types import FeatureShape


class Config(ScaledConfig):
    name: str = "qformer"
    queries: int = Field(default=32, ge=1)
    """Learned queries, the places that a frame takes."""
    width: int = Field(default=768, ge=1)
    """Width of the Q-Former."""
    depth: int = Field(default=12, ge=1)
    """Layers."""
    heads: int = Field(default=12, ge=1)
    """Attention heads; divides `width`."""
    hidden: int | None = None
    """Width of the feed-forward; null is 4 * width, as published."""
    cross_every: int = Field(default=2, ge=1)
    """The queries look at the frame in layers 0, n, 2n, ..."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in training, as published."""


class FrameQFormer(Tokenwise):
    """See the module for the names of its parameters; `scale.*` exist when asked for."""

    Config = Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        self.tokens = config.queries
        self.query_tokens = nn.Parameter(torch.randn(1, config.queries, config.width) * INIT_STD)
        self.qformer = QFormer(
            config.width,
            config.depth,
            config.heads,
            config.hidden or 4 * config.width,
            memory_width=shape.width,
            cross_every=config.cross_every,
            dropout=config.dropout,
        )
        self.proj = nn.Linear(config.width, llm_width)

    def project(self, tokens: Tensor) -> Tensor:
        """[R,N,E] -> [R,Q,D]"""
        return self.proj(self.qformer(self.query_tokens, tokens))
