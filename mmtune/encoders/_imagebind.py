"""The two ImageBind towers: patches, a class token, pre-norm blocks, and one vector compared across the senses.

Source: arXiv 2305.05665 and the released model; written again. Sound and sight differ by the stem, by a norm before the
blocks (sight), by one learned key and value in every block and by a scale of the result (sound).

The published weights are licensed CC BY-NC-SA 4.0: not for commercial use. This code is not derived from them.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.encoders._layers import block_outputs, side_by_side
from mmtune.encoders._weights import locate, read_tensors
from mmtune.errors import CheckpointError
from mmtune.layers.attention import attend

log = logging.getLogger(__name__)

BLOCK_EPSILON, STEM_EPSILON = 1e-6, 1e-5
MOST = 100.0
"""Largest scale of the result."""


class _Block(nn.Module):
    """Norm, attention, norm, feed-forward of four times the width, each added to its input.  [R,T,D] -> [R,T,D]"""

    def __init__(self, width: int, heads: int, extra: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_EPSILON)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.extra_key = nn.Parameter(torch.zeros(1, 1, width)) if extra else None
        self.extra_value = nn.Parameter(torch.zeros(1, 1, width)) if extra else None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        if self.extra_key is not None and self.extra_value is not None:
            key = torch.cat([key, self.extra_key.expand(len(x), -1, -1)], dim=1)
            value = torch.cat([value, self.extra_value.expand(len(x), -1, -1)], dim=1)
        x = x + self.out(attend(query, key, value, self.heads))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Tower(nn.Module):
    """Prepared frames to tokens and to one vector.

    Args:
        stem: convolution from a frame to patches [R,D,height,width] (times one, for sight).
        grid: patches per column and row.
        out: width of the vector.
        sound: whether it has the parts that only the sound tower has: a norm in the stem, one more key and value in
            every block, and the logarithm of the result's length; sight has a norm before the blocks instead.
    """

    def __init__(
        self, stem: nn.Module, grid: tuple[int, int], width: int, depth: int, heads: int, out: int, sound: bool
    ) -> None:
        super().__init__()
        self.grid = grid
        self.stem = stem
        self.stem_norm = nn.LayerNorm(width, eps=STEM_EPSILON) if sound else None
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(1, 1 + grid[0] * grid[1], width) * width**-0.5)
        self.pre_norm = None if sound else nn.LayerNorm(width, eps=BLOCK_EPSILON)
        self.blocks = nn.ModuleList(_Block(width, heads, extra=sound) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=BLOCK_EPSILON)
        self.head = nn.Linear(width, out, bias=False)
        self.register_buffer("log_scale", torch.tensor(math.log(20.0)) if sound else None)
        self.apply(_init)

    def embed(self, x: Tensor) -> Tensor:
        """Frames to the tokens that the blocks get, class token first.  [R,...] -> [R,1+N,D]"""
        patches = self.stem(x).flatten(2).transpose(1, 2)
        if self.stem_norm is not None:
            patches = self.stem_norm(patches)
        return torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.positions

    def layers(self, x: Tensor, indexes: Sequence[int]) -> Tensor:
        """Frames to the tokens behind some blocks, side by side.  [R,...] -> [R,1+N,layers*D]"""
        return side_by_side(block_outputs(lambda: self.encode(self.embed(x)), self.blocks, indexes))

    def encode(self, tokens: Tensor) -> Tensor:
        """Through the blocks.  [R,1+N,D] -> [R,1+N,D]"""
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def vector(self, tokens: Tensor) -> Tensor:
        """The class token normed and projected, before it gets its length.  [R,1+N,D] -> [R,out]"""
        return self.head(self.norm(tokens[:, 0]))

    def lengthen(self, vector: Tensor) -> Tensor:
        """Of length 1 for sight, and of the stored scale (published: 20) for sound.  [R,out] -> [R,out]"""
        unit = F.normalize(vector, dim=-1)
        return unit if self.log_scale is None else unit * self.log_scale.exp().clamp(max=MOST)

    def forward(self, x: Tensor) -> Tensor:
        """[R,...] -> [R,out]"""
        return self.lengthen(self.vector(self.encode(self.embed(x))))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _Block) and module.extra_key is not None and module.extra_value is not None:
        nn.init.xavier_normal_(module.extra_key)
        nn.init.xavier_normal_(module.extra_value)


def read(weights: str) -> tuple[dict[str, Tensor], str]:
    """Tensors of a folder or file that `mmtune import imagebind` wrote, and where they are.

    Says once in a process what the licence of the published weights is. Raises CheckpointError, also for tensors that
    still have their published names.
    """
    path = locate(weights)
    tensors = read_tensors(path, ("model.safetensors",))
    published = sorted(name for name in tensors if name.startswith("modality_"))
    if published:
        raise CheckpointError(
            f"{path} holds tensors by their published names, {published[0]} and others",
            "a tower as `mmtune import imagebind` writes it",
            f"mmtune import imagebind {path} --out FOLDER",
        )
    _say_licence()
    return tensors, str(path)


@functools.cache
def _say_licence() -> None:
    log.warning(
        "ImageBind's published weights are licensed CC BY-NC-SA 4.0: not for commercial use. "
        "Freely licensed towers for sound load with the encoder `hf_audio`."
    )
