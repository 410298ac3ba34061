"""A large picture as tiles beside the whole, around any image encoder: LLaVA 1.6's "anyres".

The picture is fitted into the one of some grids of tiles that shows most of it with least waste, bordered with black,
and cut into tiles of the inner encoder's size. The first frame is the whole picture, squeezed to one tile whatever the
ratio of its sides. Tokens that show border only are not meant for the language model.

Where a token belongs travels with it, in two more features after those of the inner encoder:

    line    0: one of a plain frame, in its own order; -1: not shown; n: on the n-th line of the picture of all tiles
    column  place on that line, from 1

The connector `anyres` reads them. Both are whole numbers below 256, so they survive float16 and bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, WithJsonSchema, model_validator
from torch import Tensor

from mmtune import registry
from mmtune.config import entry
from mmtune.encoders.base import Encoder, EncoderConfig
from mmtune.errors import ConfigError
from mmtune.media import Sampling
from mmtune.types import Features, Kind, Media

MARKS = 2
"""Features that say where a token belongs."""
MOST = 255
"""Largest line or column."""


class Config(EncoderConfig):
    name: str = "anyres"
    encoder: Annotated[entry("encoders"), WithJsonSchema({"type": "object", "description": "Any image encoder."})]
    """The image encoder that sees the tiles; its tokens need a grid."""
    grids: tuple[tuple[int, int], ...] = Field(
        default=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)), min_length=1
    )
    """Heights and widths in pixels that a picture may be fitted into; multiples of the inner encoder's size."""

    @model_validator(mode="before")
    @classmethod
    def _same_weights(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or not (inner := tree.get("encoder")):
            return tree
        weights = inner.get("weights") if isinstance(inner, dict) else getattr(inner, "weights", None)
        if tree.get("weights") not in (None, weights):
            raise ValueError("weights belong to the inner encoder: encoder.weights")
        return {**tree, "weights": weights}


class Anyres(Encoder):
    """Parameters: `inner.*`. A frame is prepared as one row of numbers: its pixels, then two marks for each token.

    Raises ConfigError for an inner encoder without square pictures or without a grid, and for grids that do not fit.
    """

    Config = Config
    config: Config
    kinds: ClassVar[tuple[Kind, ...]] = ("image",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.inner: Encoder = registry.find("encoders", config.encoder.name)(config.encoder)
        pixels = getattr(self.inner, "pixels", None)
        if pixels is None or self.inner.grid is None or pixels.size[0] != pixels.size[1]:
            raise ConfigError(
                f"anyres around {config.encoder.name}, which has no square pictures with a grid of tokens",
                "an image tower such as clip or hf_vision with tokens: patches",
            )
        self.side: int = pixels.size[0]
        wrong = [list(grid) for grid in config.grids if any(not edge or edge % self.side for edge in grid)]
        lines = max(edge // self.side for grid in config.grids for edge in grid) * max(self.inner.grid)
        if wrong or lines > MOST:
            raise ConfigError(
                f"grids {wrong or list(config.grids)}", f"multiples of {self.side} pixels, at most {MOST} tokens a side"
            )
        self.width, self.layers, self.extra = self.inner.width + MARKS, self.inner.layers, MARKS
        self.tokens_per_frame = self.inner.tokens_per_frame
        self.max_frames = 1 + max(height * width for height, width in config.grids) // self.side**2
        self.eval()

    def train(self, mode: bool = True) -> Anyres:
        """Stays in evaluation mode, as the inner encoder does."""
        return super().train(False)

    def load_weights(self) -> None:
        self.inner.load_weights()

    def sampling(self, kind: Kind) -> Sampling:
        return self.inner.sampling(kind)

    def prepare(self, media: Media, rng: np.random.Generator | None = None) -> Tensor:
        """uint8 [1,3,height,width] -> float32 [F,3*side*side + 2*N], the whole picture first.

        Raises MediaError for anything but a still picture.
        """
        size = (int(media.data.shape[-2]), int(media.data.shape[-1]))
        grid = best_grid(size, self.config.grids)
        whole, tiles = self._scaled(media.data, (self.side, self.side)), self._tiles(media.data, size, grid)
        marks = torch.zeros(1 + len(tiles), self.tokens_per_frame, MARKS)
        marks[1:] = self._marks(size, (grid[0] // self.side, grid[1] // self.side))
        return torch.cat([torch.cat([whole, tiles]).flatten(1), marks.flatten(1)], dim=1)

    def _scaled(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        """uint8 [1,3,...] -> float32 [1,3,*size], normalised as the inner encoder wants it."""
        return replace(self.inner.pixels, resize="stretch", size=size)(frames)

    def _tiles(self, frames: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """[tiles,3,side,side], row by row."""
        inner = fitted(size, grid)
        pixels = self.inner.pixels
        black = -torch.tensor(pixels.mean) / torch.tensor(pixels.std)
        canvas = black.view(3, 1, 1).repeat(1, *grid)
        top, left = (grid[0] - inner[0]) // 2, (grid[1] - inner[1]) // 2
        canvas[:, top : top + inner[0], left : left + inner[1]] = self._scaled(frames, inner)[0]
        cut = canvas.unflatten(1, (-1, self.side)).unflatten(3, (-1, self.side))  # [3,rows,side,columns,side]
        return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)

    def _marks(self, size: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
        """Line and column of every token of the tiles: [tiles,N,2]"""
        rows, columns = self.inner.grid
        height, width = rows * tiles[0], columns * tiles[1]
        top, left = border(size, (height, width))
        lines = torch.arange(1, height + 1) - top
        across = torch.arange(1, width + 1) - left
        shown = ((lines > 0) & (lines <= height - 2 * top))[:, None] & ((across > 0) & (across <= width - 2 * left))
        marks = torch.stack([lines[:, None].expand(height, width), across.expand(height, width)], dim=-1)
        marks = torch.where(shown[..., None], marks, -1).float()
        cut = marks.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))  # [tiles down,rows,tiles across,columns,2]
        return cut.transpose(1, 2).reshape(tiles[0] * tiles[1], rows * columns, MARKS)

    def marks(self, item: Tensor) -> Tensor:
        """Lines and columns [F,N,2] of an item, prepared [F,...] or as features [F,N,E]."""
        if item.ndim == 3:
            return item[..., -MARKS:]
        return item[:, -MARKS * self.tokens_per_frame :].unflatten(1, (self.tokens_per_frame, MARKS))

    def forward(self, x: Tensor, frames: Tensor) -> Features:
        """[M,F,...], bool [M,F] -> tokens [M,F,N,E+2]"""
        count = MARKS * self.tokens_per_frame
        pixels = x[..., :-count].unflatten(-1, (3, self.side, self.side))
        seen = self.inner(pixels, frames).tokens
        marks = x[..., -count:].unflatten(-1, (self.tokens_per_frame, MARKS)) * frames[:, :, None, None]
        return Features(torch.cat([seen, marks.to(seen.dtype)], dim=-1), frames)

    def fingerprint(self) -> str:
        """sha256 over the grids and what the inner encoder is."""
        about = [type(self).__qualname__, self.config.grids, self.inner.fingerprint()]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def best_grid(size: tuple[int, int], grids: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The grid (height, width) that shows most pixels of a picture of `size`, and of those the one with least waste."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[1] / size[1], grid[0] / size[0])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return shown, shown - grid[0] * grid[1]

    return max(grids, key=worth)


def fitted(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture scaled into a grid, the ratio of its sides kept."""
    down, across = grid[0] / size[0], grid[1] / size[1]
    if across < down:
        return min(math.ceil(size[0] * across), grid[0]), grid[1]
    return grid[0], min(math.ceil(size[1] * down), grid[1])


def border(size: tuple[int, int], tokens: tuple[int, int]) -> tuple[int, int]:
    """Lines above and below, and columns left and right, that show border only.

    Of a picture of `size` pixels in `tokens` lines and columns; the rounding is that of the published code.
    """
    height, width = tokens
    if size[1] / size[0] > width / height:
        return (height - int(round(size[0] * (width / size[1]), 7))) // 2, 0
    return 0, (width - int(round(size[1] * (height / size[0]), 7))) // 2
