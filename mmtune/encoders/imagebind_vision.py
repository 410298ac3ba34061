"""ImageBind's image tower: each picture to one vector or to its patch tokens.

The stem sees two pictures at once: `clip: 1` shows it each picture twice (still images, and the frames that
Video-LLaMA trains its sound branch on), `clip: 2` gives it the frames of a video two by two.

`weights` is what `mmtune import imagebind` wrote. The published weights are not for commercial use, which is said when
they load. Keys: `tower.*`; `mmtune/checkpoint/foreign/imagebind.py` says which published name each one has.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.encoders._image import ImageConfig, ImageEncoder, PillowPixels
from mmtune.encoders._imagebind import Tower, read
from mmtune.encoders._layers import LayersConfig
from mmtune.encoders._weights import fill
from mmtune.errors import ConfigError
from mmtune.media import Sampling
from mmtune.types import Kind, Media

PAIR = 2
"""Pictures that the stem sees at once."""
SIDE = 224
"""Height and width in pixels that the published position table is for."""


class Config(LayersConfig, ImageConfig):
    name: str = "imagebind_vision"
    clip: Literal[1, 2] = 1
    """Frames of a video in one clip, which is what counts as a frame after that: 1 shows each frame twice, 2 takes
    twice as many frames and shows them in pairs. A still image is always shown twice."""
    tokens: Literal["pooled", "patches", "all"] = "pooled"
    """`pooled` is the vector of a picture, of length 1; `patches` are the tokens after the last block, `all` puts the
    class token before them."""
    tower_width: int = Field(default=1280, ge=1)
    """Width of the tower."""
    depth: int = Field(default=32, ge=1)
    """Blocks."""
    heads: int = Field(default=16, ge=1)
    """Attention heads; divides `tower_width`."""
    out: int = Field(default=1024, ge=1)
    """Width of the pooled vector."""
    patch: int = Field(default=14, ge=1)
    """Height and width of a patch, pixels."""


class _Stem(nn.Conv3d):
    """Patches of two pictures at once, which do not overlap.  [R,3,2,height,width] -> [R,D,rows,columns]"""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__(3, width, (PAIR, patch, patch), (PAIR, patch, patch), bias=False)

    def forward(self, input: Tensor) -> Tensor:
        # one matrix product: on a CPU its rounding is a fraction of a convolution's over so many values
        flat, (_, high, wide) = input.flatten(1, 2), self.kernel_size
        found = self.weight.flatten(1) @ F.unfold(flat, (high, wide), stride=(high, wide))
        return found.unflatten(2, (flat.shape[2] // high, flat.shape[3] // wide))


class ImagebindVision(ImageEncoder):
    """See the module. Raises ConfigError for settings that do not fit each other."""

    Config = Config
    config: Config
    tower_name = "tower"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.clip == PAIR and config.rule == "fps":
            raise ConfigError("`clip: 2` with `rule: fps`, which may give an odd number", "another `rule`")
        if config.tower_width % config.heads or (config.size or SIDE) < config.patch:
            raise ConfigError(
                f"encoder `imagebind_vision` of width {config.tower_width} with {config.heads} heads, patches of "
                f"{config.patch} pixels and `size` {config.size or SIDE}",
                "heads that divide the width, and pictures no smaller than a patch",
            )
        self.structure: dict[str, Any] = {}
        self.pixels = PillowPixels(size=(SIDE, SIDE), short=SIDE).overridden(config)
        self.tower = self.seeded(self._build)
        self.measure(self._build)

    def _build(self) -> nn.Module:
        c = self.config
        side = self.pixels.size[0] // c.patch
        return Tower(_Stem(c.tower_width, c.patch), (side, side), c.tower_width, c.depth, c.heads, c.out, sound=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, *self.pixels.size) if self.config.clip == 1 else (3, PAIR, *self.pixels.size)

    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Pictures [R,3,height,width] or pairs [R,3,2,height,width] -> tokens [R,N,E]; the grid for `patches`, (1,1)
        for `pooled`, none for `all`."""
        assert isinstance(tower, Tower)
        if x.ndim == 4:
            x = x[:, :, None].expand(-1, -1, PAIR, -1, -1)
        if self.config.tokens == "pooled":
            return tower(x)[:, None], (1, 1)
        tokens = tower.layers(x, self.config.indexes(self.config.depth, "the encoder `imagebind_vision`"))
        return (tokens, None) if self.config.tokens == "all" else (tokens[:, 1:], tower.grid)

    def sampling(self, kind: Kind) -> Sampling:
        """One frame for an image, `frames` times `clip` for a video."""
        asked = super().sampling(kind)
        return asked if kind == "image" else replace(asked, frames=asked.frames * self.config.clip)

    def prepare(self, media: Media, rng: np.random.Generator | None = None) -> Tensor:
        """uint8 [F,3,height,width] -> float32 [F,3,size,size], or with `clip: 2` [F/2,3,2,size,size].

        Raises MediaError for media that are not pictures.
        """
        x = super().prepare(media, rng)
        if self.config.clip == 1:
            return x
        pairs = x.repeat_interleave(PAIR, dim=0) if media.kind == "image" else x
        if len(pairs) % PAIR:
            pairs = pairs[[*range(len(pairs)), -1]]  # a video that was sampled otherwise: the last frame stands still
        return pairs.unflatten(0, (-1, PAIR)).transpose(1, 2)

    def load_weights(self) -> None:
        """Fill the tower from `config.weights`; positions are resized for another `size`. Raises CheckpointError."""
        if self.config.weights is None:
            return
        tensors, origin = read(self.config.weights)
        table = tensors.get("tower.positions")
        if table is not None and self.config.size is not None and self.tower.positions.shape[1] != table.shape[1]:
            tensors["tower.positions"] = _resized(table, self.tower.grid[0])
        fill(self, tensors, origin)


def _resized(table: Tensor, side: int) -> Tensor:
    """Positions on another square grid, as the published code does at run time: bicubic by a factor, no anti-aliasing.

    [1,1+N,D] -> [1,1+side*side,D]; the class token's row is kept.
    """
    old = math.isqrt(table.shape[1] - 1)
    grid = table[0, 1:].T.reshape(1, -1, old, old).float()
    grid = F.interpolate(grid, scale_factor=side / old, mode="bicubic", align_corners=False)
    if grid.shape[-1] != side:
        raise ConfigError(f"positions of {old} x {old} patches for {side} x {side}", "another `size`")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
