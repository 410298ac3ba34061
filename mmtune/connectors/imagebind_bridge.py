"""ImageBind-LLM's bind network: one vector that stands for a picture or a sound becomes one prompt of the LLM.

Source: arXiv 2309.03905 and the released code. The mean over frames is brought to length 1, projected to the width of
the language model, and refined by three blocks x + f2(silu(f1(n x)) * f3(n x)). Goes with the fusion `added_prompts`
(`length: 1`). Trained on pictures; other senses of ImageBind are swapped in afterwards without training.

The retrieval cache is an option for inference: the vector is drawn halfway towards the pictures that lie nearest to it,
which helps senses that the network never saw. It has no part in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune import paths, weights_file
from mmtune.config import Config as BaseConfig
from mmtune.connectors.base import Connector, ConnectorConfig
from mmtune.errors import CheckpointError
from mmtune.types import Embeds, Features, FeatureShape

BLOCKS = 3
RMS_EPSILON, LAYER_EPSILON = 1e-6, 1e-5
SHARE_EPSILON = 1e-6
"""Added to the sum of weights when several vectors are mixed, as published."""
VECTORS = "vectors"
"""Name of the tensor [n,E] in a file of the retrieval cache."""


class RetrievalConfig(BaseConfig):
    """Vectors to look among, at inference."""

    file: str
    """Safetensors file with a tensor `vectors` [n,E], each of length 1."""
    nearest: int = Field(default=10, ge=1)
    """Vectors that are taken, by inner product."""
    temperature: float = Field(default=20.0, gt=0)
    """What similarities are multiplied by before their softmax."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Part of the result that comes from what was found."""


class Config(ConnectorConfig):
    name: str = "imagebind_bridge"
    ratio: int = Field(default=4, ge=1)
    """Hidden width of a block, in widths of the language model."""
    norm: Literal["rms", "layer"] = "rms"
    """rms: root mean square norms and no biases in the blocks; layer: layer norms and biases, as in the first release
    (`legacy_bridge`)."""
    retrieval: RetrievalConfig | None = None
    """The retrieval cache; null leaves it out, as in training."""


class Block(nn.Module):
    """x + f2(silu(f1(n x)) * f3(n x)).  [...,D] -> [...,D]"""

    def __init__(self, width: int, hidden: int, legacy: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_EPSILON) if legacy else nn.RMSNorm(width, eps=RMS_EPSILON)
        self.f1 = nn.Linear(width, hidden, bias=legacy)
        self.f2 = nn.Linear(hidden, width, bias=legacy)
        self.f3 = nn.Linear(width, hidden, bias=legacy)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.f2(F.silu(self.f1(y)) * self.f3(y))


class Retrieval:
    """Exact search by inner product, and what is made of the result."""

    def __init__(self, config: RetrievalConfig, vectors: Tensor) -> None:
        """Args: vectors: [n,E]."""
        self.config, self.vectors = config, vectors

    @classmethod
    def read(cls, config: RetrievalConfig, width: int) -> Retrieval:
        """Raises CheckpointError for a file that is missing, damaged or of another width."""
        path = Path(paths.resolve(config.file)).expanduser()
        vectors = weights_file.read(path, "a retrieval cache").get(VECTORS)
        if vectors is None or vectors.ndim != 2 or vectors.shape[1] != width or len(vectors) < config.nearest:
            shape = "nothing" if vectors is None else list(vectors.shape)
            raise CheckpointError(
                f"retrieval cache {path} holds {shape} as `{VECTORS}`",
                f"at least {config.nearest} vectors of width {width}",
                "write it with safetensors: save_file({'vectors': vectors}, path)",
            )
        return cls(config, vectors)

    def find(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [M,E] -> weights [M,k] that sum to 1, and the k nearest vectors [M,k,E]"""
        self.vectors = self.vectors.to(x.device)
        near, index = (x.float() @ self.vectors.float().T).topk(self.config.nearest, dim=-1)
        return (near * self.config.temperature).softmax(-1), self.vectors[index].float()

    def blend(self, x: Tensor, weights: Tensor, found: Tensor) -> Tensor:
        """[...,E], [...,k], [...,k,E] -> unit vectors [...,E]: so much of x, the rest of the weighted sum."""
        prototype = F.normalize((weights[..., None, :] @ found)[..., 0, :], dim=-1)
        share = self.config.share
        return F.normalize((1 - share) * x.float() + share * prototype, dim=-1).to(x.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """[M,E] -> [M,E]"""
        return self.blend(x, *self.find(x))


class ImagebindBridge(Connector):
    """Keys: `proj.*` [D,E], `blocks.N.norm.*`, `blocks.N.f1.*` and `f3.*` [ratio*D,D], `blocks.N.f2.*` [D,ratio*D]."""

    Config = Config
    config: Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        hidden = config.ratio * llm_width
        self.proj = nn.Linear(shape.width, llm_width)
        self.blocks = nn.ModuleList(Block(llm_width, hidden, config.norm == "layer") for _ in range(BLOCKS))
        self._retrieval: Retrieval | None = None

    def tokens_out(self, frames: int) -> int:
        """Places K of an item with `frames` real frames: one."""
        return 1

    @staticmethod
    def mix(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Several senses of one thing -> the vector of their mixture; each is brought to length 1 first.

        [M,E] each, with their weights -> [M,E]
        """
        total = sum(weights) + SHARE_EPSILON
        parts = [F.normalize(x, dim=-1) * (w / total) for x, w in zip(vectors, weights, strict=True)]
        return torch.stack(parts).sum(0)

    def bridge(self, x: Tensor) -> Tensor:
        """[...,E] -> [...,D]"""
        x = self.proj(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, features: Features) -> Embeds:
        """[M,F,N,E] -> tokens [M,1,D]; the mean over real frames and their tokens is what is bridged.

        Raises CheckpointError when the file of the retrieval cache cannot be used; it is read when first needed.
        """
        real = features.frame_mask[:, :, None, None].to(features.tokens.dtype)
        tokens = features.tokens.masked_fill(~features.frame_mask[:, :, None, None], 0)
        mean = tokens.sum((1, 2)) / (real.sum((1, 2)) * tokens.shape[2]).clamp(min=1)
        x = self.mix([mean.to(self.proj.weight.dtype)], [1.0])
        if self.config.retrieval is not None and not self.training:
            if self._retrieval is None:
                self._retrieval = Retrieval.read(self.config.retrieval, self.shape.width)
            x = self._retrieval(x)
        out = self.bridge(x)[:, None]
        return Embeds(out, torch.ones(out.shape[:2], dtype=torch.bool, device=out.device))
