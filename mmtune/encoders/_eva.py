"""The image tower of EVA ("ViT-g/14") as BLIP-2 uses it: a plain pre-norm transformer that ends without a norm.

Source: EVA, arXiv 2211.07636, and the released weights of BLIP-2, arXiv 2301.12597. What differs from other towers:
queries and values have a bias and keys have none; the published file has 40 blocks, of which BLIP-2 leaves the last
out; class token and all patches go on.

Parameter names are those of the published file: `cls_token`, `pos_embed`, `patch_embed.proj.*`, `blocks.N.norm1.*`,
`blocks.N.attn.{q_bias,v_bias,qkv.weight,proj.*}`, `blocks.N.norm2.*`, `blocks.N.mlp.{fc1,fc2}.*`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.layers.attention import attend
from mmtune.layers.norm import LayerNormFloat32

EPSILON = 1e-6
INIT_STD = 0.02


class _Attention(nn.Module):
    """Self-attention without a bias on keys.  [B,T,E] -> [B,T,E]"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        query, key, value = F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        return self.proj(attend(query, key, value, self.heads))


class _Mlp(nn.Module):
    """Two linear layers with exact GELU between them.  [B,T,E] -> [B,T,E]"""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """[B,T,E] -> [B,T,E]"""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = LayerNormFloat32(width, eps=EPSILON)
        self.attn = _Attention(width, heads)
        self.norm2 = LayerNormFloat32(width, eps=EPSILON)
        self.mlp = _Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Patches(nn.Module):
    """Square patches to tokens, row by row.  [B,3,height,width] -> [B,N,E]"""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Eva(nn.Module):
    """The tower. Drawn as published: linear weights and tables N(0, 0.02) cut at two deviations, and what a block adds
    to the stream divided by the square root of twice its number.

    Args:
        size: height and width of a picture in pixels; a multiple of `patch`.
        patch: side of a patch in pixels.
        width: E.
        depth: blocks.
        heads: attention heads; must divide `width`.
        hidden: width inside the perceptrons.
    """

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.grid = (size // patch, size // patch)
        self.patch_embed = _Patches(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(_Block(width, heads, hidden) for _ in range(depth))
        self._draw()

    def _draw(self) -> None:
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for number, block in enumerate(self.blocks, start=1):
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.data.div_(math.sqrt(2 * number))

    def embed(self, x: Tensor) -> Tensor:
        """Normalised pictures [B,3,height,width] -> class token and patches with their positions [B,1+N,E]"""
        x = self.patch_embed(x)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,height,width] -> [B,1+N,E], class token first, no final norm"""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x
