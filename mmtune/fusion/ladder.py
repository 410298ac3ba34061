"""A small network beside a frozen language model learns from what comes out of its layers: ladder side-tuning.

Source: arXiv 2206.06522 (LST), section 3. Media fill their tokens as in `tokens`. The language model runs without
gradient; beside it a network of D / `ratio` numbers a token climbs from layer to layer. On each rung a gate mixes its
state with the layer's output, brought to its width, and a block of attention and perceptron follows. What it has at
the top is brought back to D and added to the hidden state. No gradient goes through the language model, so nothing of
its layers is kept for one, which is the price of LoRA and of a connector in front. Connectors learn by way of the
network beside it alone.

The last matrix starts at zero, so a fresh model computes what it did. Other than in the paper, blocks are drawn at
random and not cut out of the model's own, and they have no positions: causal attention tells order by itself.

Letters: d width of the network beside, h its heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmtune.errors import ConfigError, ModelError
from mmtune.fusion.base import Fusion, FusionConfig
from mmtune.fusion.tokens import write
from mmtune.llm._attention import Call
from mmtune.llm.base import LLM, Cache
from mmtune.types import Batch, Embeds

SEGMENTS = "ladder.segments"
"""Where a cache has the segments of the tokens that were read."""
TEMPERATURE = 0.1
"""What a gate is divided by before its sigmoid, as published: it moves faster."""


class Config(FusionConfig):
    name: str = "ladder"
    ratio: int = Field(default=8, ge=1)
    """How many times narrower the network beside is than the language model; published: 8."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the network beside; divides its width."""
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Layers that are read, -1 the uppermost and 0 the lowest; null reads all."""


class Rung(nn.Module):
    """One layer's output joins the state, and a block of attention and perceptron follows. Keys: `down.weight` [d,D],
    `gate` scalar, `norm1`, `qkv`, `out`, `norm2`, `fc1`, `fc2`."""

    def __init__(self, number: int, llm_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.number, self.heads = number, heads
        # without weights, which `down` has anyhow: the layer's own output need not be kept then
        self.norm = nn.RMSNorm(llm_width, elementwise_affine=False)
        self.down = nn.Linear(llm_width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, state: Tensor, layer: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        """State [B,T,d], the layer's output [B,T,D], bool [B,1,T,P+T] -> [B,T,d]"""
        share = (self.gate / TEMPERATURE).sigmoid()
        x = (share * state + (1 - share) * self.down(self.norm(layer))).to(self.norm1.weight.dtype)
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B,T,h,d/h]
        key, value = (self._kept(name, new, cache) for name, new in (("keys", key), ("values", value)))
        heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
        x = x + self.out(F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _kept(self, name: str, new: Tensor, cache: Cache | None) -> Tensor:
        """Keys or values [B,T,h,d/h] behind those of the tokens that were read before."""
        return new if cache is None else _joined(f"ladder.{self.number}.{name}", new, cache)


class Ladder(Fusion):
    """Keys: `inward.weight` [d,D], `rungs.<layer>.*`, `norm.weight` [d], `outward.weight` [D,d].

    Raises ConfigError for layers that the model does not have, and for a width that does not divide.
    """

    Config = Config
    config: Config
    through_llm = False

    def __init__(self, config: Config, llm_width: int, depth: int, heads: int) -> None:
        super().__init__(config, llm_width, depth, heads)
        width = llm_width // config.ratio
        chosen = sorted({layer % depth for layer in config.layers or range(depth)})
        wrong = [layer for layer in config.layers or () if not -depth <= layer < depth]
        if wrong or len(chosen) != len(config.layers or chosen):
            raise ConfigError(
                f"fusion `ladder` with layers {list(config.layers or ())} of a model that has {depth}",
                f"each layer once, from -{depth} to {depth - 1}",
            )
        if llm_width % config.ratio or width % config.heads:
            raise ConfigError(
                f"fusion `ladder` with ratio {config.ratio} and {config.heads} heads beside a width of {llm_width}",
                "a ratio that divides the width, and heads that divide what is left",
            )
        self.inward = nn.Linear(llm_width, width, bias=False)
        self.rungs = nn.ModuleDict({str(n): Rung(n, llm_width, width, config.heads) for n in chosen})
        self.norm = nn.RMSNorm(width)
        self.outward = nn.Linear(width, llm_width, bias=False)
        nn.init.zeros_(self.outward.weight)

    def check(self, llm: LLM, num_tokens: Mapping[str, int] | None = None) -> None:
        """Raises ModelError for a model whose layers cannot be read, and for one that tuners have opened."""
        llm.require("tap", "fusion `ladder`")
        opened = next((name for name, parameter in llm.named_parameters() if parameter.requires_grad), None)
        if opened is not None:
            raise ModelError(
                f"fusion `ladder` with a language model that is tuned ({opened})",
                "a frozen one: no gradient goes through it",
                "leave out the tuner, or take the fusion `tokens`",
            )

    def forward(self, llm: LLM, batch: Batch, embeds: dict[str, Embeds], cache: Any = None) -> Tensor:
        """Text embeddings [B,T,D] with the items in their slots, through the LLM and the network beside -> [B,T,D].

        Raises ModelError when an item gives another number of tokens than its slot has.
        """
        x, read = llm.embed(batch.tokens), {}
        for branch in sorted(embeds):
            x = write(x, branch, embeds[branch], batch.slots.get(branch))
        plain = cache is not None and bool((batch.segments == 1).all())
        with torch.no_grad():
            segments = None if plain else batch.segments
            hidden = llm.forward(x, batch.positions, segments, cache, tap=lambda n, out: read.update({str(n): out}))
        state, mask = self.inward(x.to(self.inward.weight.dtype)), _mask(batch.segments, cache)
        for number, rung in self.rungs.items():
            state = rung(state, read[number].to(rung.down.weight.dtype), mask, cache)
        return hidden + self.outward(self.norm(state)).to(hidden.dtype)


def _mask(segments: Tensor, cache: Cache | None) -> Tensor:
    """Who sees whom: bool [B,1,T,P+T] for segments [B,T] behind those of P tokens in the cache."""
    seen = None if cache is None else cache.beside.get(SEGMENTS)
    past = 0 if seen is None else seen.shape[1]
    if cache is not None:
        _joined(SEGMENTS, segments, cache)
    mask = Call(segments.shape[1], past, segments, seen).mask(None, segments.device)
    assert mask is not None  # there are segments
    return mask


def _joined(name: str, new: Tensor, cache: Cache) -> Tensor:
    """What the cache has by a name with what is new [B,T,...] behind it; it is kept there."""
    before = cache.beside.get(name)
    cache.beside[name] = new if before is None else torch.cat([before, new], 1)
    return cache.beside[name]
