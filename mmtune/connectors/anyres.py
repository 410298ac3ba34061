"""The two-layer perceptron on every token of a tiled picture, lines put together over the tiles: LLaVA 1.6.

For the encoder `anyres`, which says of each token where it belongs: first the whole picture, then the tiles line by
line, and a learned vector at the end of each line (`spatial_unpad` of the published code). Tokens that show border only
take no token, so how many tokens an item takes depends on the shape of its picture. An item without tiles has that
vector once, at its end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.connectors.mlp import Config as MlpConfig
from mmtune.connectors.mlp import Mlp
from mmtune.errors import ConfigError
from mmtune.types import Embeds, Features, FeatureShape

MARKS = 2
"""Last features of a token: its line (0 plain, -1 not shown, from 1 on a line of the tiles), and its column."""


class Config(MlpConfig):
    name: str = "anyres"


class Anyres(Mlp):
    """Keys: those of `mlp`, and `newline` [D]."""

    Config = Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        seen = replace(shape, width=shape.width - MARKS, extra=0, grid=None)
        super().__init__(config, seen, llm_width)
        self.newline = nn.Parameter(torch.randn(llm_width) / llm_width**0.5)

    def calibrate(self, rms: float) -> None:
        super().calibrate(rms)
        if self.config.match_scale:
            with torch.no_grad():
                self.newline.mul_(rms / self.newline.square().mean().sqrt())

    def check(self, encoder: Any) -> None:
        if not hasattr(encoder, "marks"):
            raise ConfigError(
                f"connector anyres behind the encoder {encoder.config.name}",
                "the encoder anyres, which says of each token where it belongs",
                "encoder: {name: anyres, encoder: {...}} around it, or the connector mlp",
            )

    def tokens_out(self, frames: int) -> int:
        """Places K of an item of `frames` plain frames; for tiles see `num_tokens`."""
        return frames * self.tokens + (frames > 0)

    def num_tokens(self, item: Tensor, encoder: Any) -> int:
        """K of one item, prepared or as stored features."""
        return len(_order(encoder.marks(item).flatten(0, 1)))

    def forward(self, features: Features) -> Embeds:
        """[M,F,N,E+2] -> tokens [M,K,D]"""
        tokens, marks = features.tokens[..., :-MARKS], features.tokens[..., -MARKS:]
        weight = self.layers[0].weight
        seen = self.scale(self.project(tokens[features.frame_mask].to(weight.dtype)))
        counts = features.frame_mask.sum(dim=1).tolist()
        items = []
        for item, (one, real) in enumerate(zip(seen.split(counts), features.frame_mask, strict=True)):
            order = _order(marks[item, real].flatten(0, 1))
            # the end of a line is the token after all others
            items.append(torch.cat([one.flatten(0, 1), self.newline[None].to(one.dtype)])[order])
        most = max(map(len, items), default=0)
        mask = torch.arange(most, device=seen.device) < torch.tensor([[len(i)] for i in items], device=seen.device)
        out = seen.new_zeros(len(items), most, self.llm_width) + self.newline.sum().to(seen.dtype) * 0
        return Embeds(out.masked_scatter(mask[..., None], torch.cat(items)) if items else out, mask)


def _order(marks: Tensor) -> Tensor:
    """Index of the token for each token of an item; the number of tokens stands for the end of a line.

    marks [F*N,2] -> int64 [K]
    """
    line, column = marks.float().round().long().unbind(-1)
    plain = (line == 0).nonzero()[:, 0]
    on = (line > 0).nonzero()[:, 0]
    if not len(on):
        return torch.cat([plain, plain.new_full((min(1, len(plain)),), len(line))])
    ends = line[on].unique()
    width = int(column.max()) + 2
    # a line's end comes after its last column
    keys = torch.cat([line[on] * width + column[on], ends * width + width - 1])
    index = torch.cat([on, ends.new_full(ends.shape, len(line))])
    return torch.cat([plain, index[keys.argsort(stable=True)]])
