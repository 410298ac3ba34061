"""The perceiver resampler: learned latents that look at all frames and at each other, then one matrix. Flamingo.

Source: arXiv 2204.14198, section 3.1.1 and appendix A.1.1. A learned vector for each frame is added to its tokens;
there is none for the position within a frame. In every layer the latents ask, and keys and values are those of the
media and of the latents, in that order; both get a norm of their own. A feed-forward of the squared ReLU follows. A
norm and a linear layer end it; the latter is ours, as Flamingo's cross-attention has its own matrices.

Any item takes as many places as there are latents, whatever the number of frames.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.connectors._scale import OutputScale, ScaledConfig
from mmtune.connectors.base import Connector
from mmtune.errors import ConfigError
from mmtune.layers.attention import attend
from mmtune.layers.norm import LayerNormFloat32
from mmtune.layers.positions import FramePositions
from mmtune.layers.qformer import INIT_STD
from mmtune.types import Embeds, Features, FeatureShape


class Config(ScaledConfig):
    name: str = "resampler"
    queries: int = Field(default=64, ge=1)
    """Latents, the places that any item takes."""
    width: int | None = Field(default=None, ge=1)
    """Width of the latents; null is the encoder's, as published. Another width puts a linear layer before it all."""
    depth: int = Field(default=6, ge=1)
    """Layers."""
    heads: int = Field(default=8, ge=1)
    """Attention heads."""
    head_width: int = Field(default=64, ge=1)
    """Width of a head; heads times this may differ from `width`."""
    factor: int = Field(default=4, ge=1)
    """Hidden width of the feed-forward, in widths."""
    activation: Literal["squared_relu", "gelu"] = "squared_relu"
    """squared_relu as in the paper; gelu as in open re-implementations."""
    frames: int = Field(default=32, ge=1)
    """Rows of the frame position table: the most frames an item may have."""


class Layer(nn.Module):
    """Latents [M,Q,W], media [M,S,W], bool [M,S] -> latents [M,Q,W]"""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.activation = config.heads, config.activation
        self.norm_media = LayerNormFloat32(width)
        self.norm_latents = LayerNormFloat32(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.norm = LayerNormFloat32(width)
        self.up = nn.Linear(width, config.factor * width, bias=False)
        self.down = nn.Linear(config.factor * width, width, bias=False)

    def forward(self, latents: Tensor, media: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm_latents(latents)
        both = torch.cat([self.norm_media(media), x], dim=1)
        if mask is not None:
            mask = F.pad(mask, (0, x.shape[1]), value=True)
        latents = latents + self.out(attend(self.query(x), self.key(both), self.value(both), self.heads, mask))
        y = self.up(self.norm(latents))
        y = F.relu(y).square() if self.activation == "squared_relu" else F.gelu(y)
        return latents + self.down(y)


class Resampler(Connector):
    """Keys: `latents` [Q,W], `frame_positions.weight` [frames,W], `layers.N.*`, `norm.*`, `proj.*` [D,W]; `reduce.*`
    [W,E] for a width of its own, `scale.*` when asked for.

    Raises ConfigError when the encoder may give more frames than the position table has rows.
    """

    Config = Config
    config: Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        if shape.frames > config.frames:
            raise ConfigError(
                seen=f"connector `resampler` with {config.frames} frame positions",
                expected=f"at least {shape.frames}, the encoder's most frames",
                hint=f"set the connector's `frames: {shape.frames}`, or the encoder's `frames` lower",
            )
        width = config.width or shape.width
        self.reduce = None if width == shape.width else nn.Linear(shape.width, width)
        self.frame_positions = FramePositions(config.frames, width)
        self.latents = nn.Parameter(torch.randn(config.queries, width) * INIT_STD)
        self.layers = nn.ModuleList(Layer(width, config) for _ in range(config.depth))
        self.norm = LayerNormFloat32(width)
        self.proj = nn.Linear(width, llm_width)
        self.scale = OutputScale(config, llm_width)

    def calibrate(self, rms: float) -> None:
        self.scale.calibrate(rms)

    def tokens_out(self, frames: int) -> int:
        """Places K of an item with `frames` real frames: always the number of latents."""
        return self.config.queries

    def forward(self, features: Features) -> Embeds:
        """[M,F,N,E] -> tokens [M,Q,D], every token real.  An item without a real frame gives finite values."""
        x = features.tokens.to(self.proj.weight.dtype)
        x = x if self.reduce is None else self.reduce(x)
        x = x + self.frame_positions(x.shape[1])[:, None]
        mask = features.frame_mask[:, :, None].expand(x.shape[:3]).flatten(1, 2)
        # A batch without padding needs no mask, and attention is faster without one.
        seen = None if bool(mask.all()) else mask
        media, latents = x.flatten(1, 2), self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            latents = layer(latents, media, seen)
        out = self.scale(self.proj(self.norm(latents)))
        return Embeds(out, torch.ones(out.shape[:2], dtype=torch.bool, device=out.device))
