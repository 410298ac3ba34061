"""A two-layer perceptron on every token, then adaptive average pooling over (frames, height, width): PLLaVA.

Source: arXiv 2404.16994, section 3.3 and its released code: linear_1, exact GELU, linear_2, then adaptive average
pooling to (time, height, width), flattened in that order. Averaging commutes with the second linear layer (its bias
included, as the weights of a bin sum to 1) but not with GELU, so the pooling is done between GELU and linear_2: the
same function at a fraction of the multiplications.

With `norm`, `bins`, `out_norm` and `match_scale` off this is the published connector. Turned on together they are the
default of the pocket recipe, where a learned vector for each bin tells the language model which position it reads.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.connectors._scale import OutputScale, ScaledConfig
from mmtune.connectors.base import Connector
from mmtune.errors import ConfigError
from mmtune.layers.norm import LayerNormFloat32
from mmtune.layers.positions import pool_grid, pooling_matrix
from mmtune.types import Embeds, Features, FeatureShape

BIN_STD = 0.02


class Config(ScaledConfig):
    name: str = "pool"
    time: int = Field(default=16, ge=1)
    """Bins over frames."""
    height: int = Field(default=12, ge=1)
    """Bins over rows of the encoder's grid."""
    width: int = Field(default=12, ge=1)
    """Bins over columns of the encoder's grid."""
    hidden: int | None = None
    """Width between the two linear layers; null is the LLM's width, as published."""
    short: Literal["fewer", "repeat"] = "fewer"
    """An item with few frames: at most as many time bins as frames (an image then takes height * width places), or
    frames repeated up to the encoder's number of frames as PLLaVA does, so that every item takes the same places."""
    norm: bool = False
    """Layer norm over the encoder's tokens before the first linear layer."""
    bins: bool = False
    """Add a learned vector to each output bin; an item with fewer time bins gets the averages of the vectors."""


class Pool(Connector):
    """Keys: `linear_1.*` [hidden,E], `linear_2.*` [D,hidden]; `norm.*`, `bins` [time,height*width,D] when asked for.

    Raises ConfigError for an encoder whose tokens have no grid.
    """

    Config = Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        if shape.grid is None:
            raise ConfigError(
                seen="connector `pool` behind an encoder whose tokens have no grid",
                expected="patch tokens laid out in rows and columns",
                hint="set the encoder's `tokens: patches`, or use `mlp` or `video_qformer`",
            )
        self.config, self.frames = config, shape.frames
        self.grid: tuple[int, int] = shape.grid
        hidden = config.hidden or llm_width
        self.norm = LayerNormFloat32(shape.width) if config.norm else None
        self.linear_1 = nn.Linear(shape.width, hidden)
        self.linear_2 = nn.Linear(hidden, llm_width)
        self.bins: nn.Parameter | None = None
        if config.bins:
            self.bins = nn.Parameter(torch.randn(config.time, config.height * config.width, llm_width) * BIN_STD)
        self.scale = OutputScale(config, llm_width)

    def calibrate(self, rms: float) -> None:
        self.scale.calibrate(rms)

    def times_out(self, frames: int) -> int:
        """Time bins of an item with `frames` real frames."""
        return self.config.time if self.config.short == "repeat" and frames else min(frames, self.config.time)

    def tokens_out(self, frames: int) -> int:
        """Places K of an item with `frames` real frames: time bins * height * width."""
        return self.times_out(frames) * self.config.height * self.config.width

    def forward(self, features: Features) -> Embeds:
        """[M,F,N,E] -> tokens [M,K,D], bins in order time, height, width; each item is pooled over its real frames."""
        x = features.tokens[features.frame_mask].to(self.linear_1.weight.dtype)
        x = F.gelu(self.linear_1(x if self.norm is None else self.norm(x)))
        x = pool_grid(x, self.grid, (self.config.height, self.config.width))
        counts = features.frame_mask.sum(dim=1)
        starts = counts.cumsum(0) - counts
        lengths = counts.tolist()
        most = max((self.tokens_out(count) for count in lengths), default=0)
        mask = torch.arange(most) < torch.tensor([self.tokens_out(count) for count in lengths])[:, None]
        out = x.new_zeros(len(lengths), most, self.linear_2.out_features)
        for count in sorted(set(lengths)):
            items = (counts == count).nonzero()[:, 0]
            index = starts[items, None] + torch.arange(count, device=items.device)
            pooled = self._pool_time(x[index])
            out = out.index_put((items,), F.pad(pooled, (0, 0, 0, most - pooled.shape[1])).to(out.dtype))
        return Embeds(out, mask.to(out.device))

    def _time(self, frames: int, device: torch.device) -> Tensor:
        """Pooling of `frames` frames as a matrix: [time bins, frames]"""
        if self.config.short == "repeat" and frames < self.frames:
            spread = torch.arange(self.frames, device=device) // (self.frames // frames + 1)
            repeated = F.one_hot(spread, frames).float()
            return pooling_matrix(self.frames, self.config.time, device) @ repeated
        return pooling_matrix(frames, self.times_out(frames), device)

    def _pool_time(self, x: Tensor) -> Tensor:
        """[m,frames,height*width,hidden], all frames real -> [m,K,D]"""
        frames = x.shape[1]
        if not frames:
            return self.linear_2(x.flatten(1, 2))
        y = self.linear_2(torch.einsum("tf,mfsd->mtsd", self._time(frames, x.device).to(x.dtype), x))
        if self.bins is not None:
            chosen = pooling_matrix(self.config.time, y.shape[1], y.device).to(self.bins.dtype)
            y = y + torch.einsum("nt,tsd->nsd", chosen, self.bins)
        return self.scale(y).flatten(1, 2)
