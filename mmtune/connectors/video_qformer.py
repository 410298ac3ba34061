"""Frame positions, then learned queries over the tokens of all frames, then one matrix: Video-LLaMA.

Source: arXiv 2306.02858, sections 2.1 and 2.2, and the released code. Any item takes as many tokens as there are
queries: 32 over the image Q-Former's tokens of each frame, or 8 over sound segments (`queries: 8`, `frames: 8`).

Parameters carry the published names less their prefix, so a table of names moves weights in and out:
`video_query_tokens` -> `query_tokens` [1,Q,width], `video_frame_position_embedding.weight` -> `frame_positions.weight`
[frames,E], `video_Qformer.bert.` -> `qformer.`, `llama_proj.` -> `proj.`; the sound branch alike.

`norm`, `pool`, `num_tokens`, `out_norm` and `match_scale` are off as published. Over raw patch tokens, which unlike an
image Q-Former's outputs are many and carry no position of their own, `num_tokens` is needed to answer where things are.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.connectors._scale import OutputScale, ScaledConfig
from mmtune.connectors.base import Connector
from mmtune.errors import ConfigError
from mmtune.layers.norm import LayerNormFloat32
from mmtune.layers.positions import FramePositions, pool_grid
from mmtune.layers.qformer import INIT_STD, QFormer
from mmtune.types import Embeds, Features, FeatureShape

POSITION_STD = 0.5


class Config(ScaledConfig):
    name: str = "video_qformer"
    queries: int = Field(default=32, ge=1)
    """Learned queries, the tokens that any item takes."""
    width: int = Field(default=768, ge=1)
    """Width of the Q-Former."""
    depth: int = Field(default=2, ge=1)
    """Layers, each with cross-attention."""
    heads: int = Field(default=12, ge=1)
    """Attention heads; divides `width`."""
    hidden: int | None = None
    """Width of the feed-forward; null is 4 * width, as published."""
    frames: int = Field(default=32, ge=1)
    """Rows of the frame position table: the most frames an item may have."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in training, as published."""
    pool: int | None = Field(default=None, ge=1)
    """Average each frame's grid to pool * pool tokens first; null keeps all N."""
    norm: bool = False
    """Layer norm over the encoder's tokens before positions are added."""
    token_positions: bool = False
    """Add a learned vector for each token's position within its frame."""


class VideoQFormer(Connector):
    """See the module for the names of its parameters; `norm.*` [E], `token_positions` [N',E] and
    `scale.*` exist when asked for.

    Raises ConfigError when the encoder may give more frames than the position table has rows, or when `pool` meets
    tokens without a grid.
    """

    Config = Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        if shape.frames > config.frames:
            raise ConfigError(
                seen=f"connector `video_qformer` with {config.frames} frame positions",
                expected=f"at least {shape.frames}, the encoder's most frames",
                hint=f"set the connector's `frames: {shape.frames}`, or the encoder's `frames` lower",
            )
        if config.pool is not None and shape.grid is None:
            raise ConfigError(
                seen="`pool` behind an encoder whose tokens have no grid",
                expected="patch tokens laid out in rows and columns",
                hint="set `pool: null`, or the encoder's `tokens: patches`",
            )
        self.config, self.grid = config, shape.grid
        tokens = shape.tokens if config.pool is None else config.pool**2
        self.norm = LayerNormFloat32(shape.width) if config.norm else None
        self.frame_positions = FramePositions(config.frames, shape.width)
        self.token_positions: nn.Parameter | None = None
        if config.token_positions:
            self.token_positions = nn.Parameter(torch.randn(tokens, shape.width) * POSITION_STD)
        self.query_tokens = nn.Parameter(torch.randn(1, config.queries, config.width) * INIT_STD)
        hidden = config.hidden or 4 * config.width
        self.qformer = QFormer(
            config.width, config.depth, config.heads, hidden, memory_width=shape.width, dropout=config.dropout
        )
        self.proj = nn.Linear(config.width, llm_width)
        self.scale = OutputScale(config, llm_width)

    def calibrate(self, rms: float) -> None:
        self.scale.calibrate(rms)

    def tokens_out(self, frames: int) -> int:
        """Places K of an item with `frames` real frames: always the number of queries."""
        return self.config.queries

    def memory(self, features: Features) -> tuple[Tensor, Tensor]:
        """What the queries attend to: tokens [M,F*N',E], frame-major, and bool [M,F*N'] true where a frame is real."""
        x = features.tokens.to(self.proj.weight.dtype)
        if self.config.pool is not None:
            x = pool_grid(x, self.grid, (self.config.pool, self.config.pool))
        if self.norm is not None:
            x = self.norm(x)
        x = x + self.frame_positions(x.shape[1])[:, None]
        if self.token_positions is not None:
            x = x + self.token_positions
        mask = features.frame_mask[:, :, None].expand(x.shape[:3])
        return x.flatten(1, 2), mask.flatten(1, 2)

    def forward(self, features: Features) -> Embeds:
        """[M,F,N,E] -> tokens [M,Q,D], every token real.  An item without a real frame gives finite values."""
        memory, mask = self.memory(features)
        # A batch without padding needs no mask, and attention is faster without one.
        out = self.qformer(self.query_tokens, memory, None if bool(mask.all()) else mask)
        out = self.scale(self.proj(out))
        return Embeds(out, torch.ones(out.shape[:2], dtype=torch.bool, device=out.device))
