"""The frozen eye of BLIP-2: EVA ViT-g, its norm, and the image Q-Former, as one encoder of single frames.

Source: BLIP-2, arXiv 2301.12597, section 3; Video-LLaMA, arXiv 2306.02858, applies it to each frame. `tokens` says how
far it goes: to the 32 queries of the Q-Former, or to the tower and its norm alone, for a connector that has its own
Q-Former (`qformer`).

`weights` is a safetensors file or folder with our names, which are the published ones under these heads: `vit.*`
(`eva_vit_g.pth`, 39 of its 40 blocks), `ln_vision.*`, `query_tokens` and `qformer.*` (`blip2_pretrained*.pth`).
`mmtune import blip2` makes it. Without `tokens: queries` the Q-Former is neither built nor read, without `norm` the
norm. The Q-Former's dropout of training does not exist here: an encoder is always in evaluation mode.

Pictures are stretched to the square and normalised with CLIP's statistics, as published.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.encoders._eva import Eva
from mmtune.encoders._image import ImageConfig, ImageEncoder, Pixels
from mmtune.encoders._layers import LayersConfig, block_outputs, side_by_side
from mmtune.encoders._weights import fill, locate, read_tensors
from mmtune.errors import ConfigError
from mmtune.layers.norm import LayerNormFloat32
from mmtune.layers.positions import resize_grid
from mmtune.layers.qformer import INIT_STD, QFormer

LN_VISION_EPSILON = 1e-5
QFORMER = ("query_tokens", "qformer.")
NORM = ("ln_vision.",)


class Config(LayersConfig, ImageConfig):
    """The defaults are the published sizes."""

    name: str = "blip2_eva"
    revision: str | None = None
    """Revision of a hub repository; null is the newest."""
    tokens: Literal["queries", "patches", "all"] = "queries"
    """`queries` are the outputs of the image Q-Former, `patches` and `all` those of the tower after its norm, without
    and with the class token in front."""
    norm: bool = True
    """Have `ln_vision`, which BLIP-2's file holds; off, the tower is what `eva_vit_g.pth` alone gives. The Q-Former
    needs it."""
    trained_size: int = Field(default=224, ge=1)
    """Height and width in pixels that the weights were trained with."""
    patch: int = Field(default=14, ge=1)
    """Side of a patch, pixels."""
    vit_width: int = Field(default=1408, ge=1)
    """Width of the tower."""
    vit_depth: int = Field(default=39, ge=1)
    """Blocks of the tower; the published file has one more, whose output is not used."""
    vit_heads: int = Field(default=16, ge=1)
    """Attention heads of the tower; divides its width."""
    vit_hidden: int = Field(default=6144, ge=1)
    """Width inside the tower's perceptrons; published as 4.3637 * vit_width, rounded down."""
    queries: int = Field(default=32, ge=1)
    """Learned queries of the Q-Former, its tokens per frame."""
    qformer_width: int = Field(default=768, ge=1)
    """Width of the Q-Former."""
    qformer_depth: int = Field(default=12, ge=1)
    """Layers of the Q-Former."""
    qformer_heads: int = Field(default=12, ge=1)
    """Attention heads of the Q-Former; divides its width."""
    qformer_hidden: int | None = None
    """Width inside the Q-Former's perceptrons; null is 4 * qformer_width, as published."""
    cross_every: int = Field(default=2, ge=1)
    """The Q-Former looks at the picture in its layers 0, n, 2n, ..."""


class _Tower(nn.Module):
    """Tower, norm, and the Q-Former when it is wanted.  [R,3,height,width] -> [R,N,E]"""

    def __init__(self, config: Config, size: int) -> None:
        super().__init__()
        self.vit = Eva(size, config.patch, config.vit_width, config.vit_depth, config.vit_heads, config.vit_hidden)
        self.ln_vision = LayerNormFloat32(config.vit_width, eps=LN_VISION_EPSILON) if config.norm else None
        self.qformer: QFormer | None = None
        if config.tokens == "queries":
            width = config.qformer_width
            self.query_tokens = nn.Parameter(torch.randn(1, config.queries, width) * INIT_STD)
            self.qformer = QFormer(
                width,
                config.qformer_depth,
                config.qformer_heads,
                config.qformer_hidden or 4 * width,
                memory_width=config.vit_width,
                cross_every=config.cross_every,
                dropout=0.0,
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.vit(x)
        if self.ln_vision is not None:
            x = self.ln_vision(x)
        return x if self.qformer is None else self.qformer(self.query_tokens, x)

    def layers(self, x: Tensor, config: Config) -> Tensor:
        """Behind some blocks of the tower, each through the norm.  [R,3,height,width] -> [R,1+N,layers*E]"""
        indexes = config.indexes(len(self.vit.blocks), "the encoder `blip2_eva`")
        found = block_outputs(lambda: self.vit(x), self.vit.blocks, indexes)
        return side_by_side(found if self.ln_vision is None else [self.ln_vision(tokens) for tokens in found])


class Blip2Eva(ImageEncoder):
    """Keys: `tower.vit.*`, `tower.ln_vision.*`, `tower.query_tokens` [1,Q,width], `tower.qformer.*`.

    Raises ConfigError for sizes that do not go together.
    """

    Config = Config
    config: Config
    tower_name = "tower"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        side = config.trained_size
        self.pixels = Pixels(size=(side, side), short=side, resize="stretch").overridden(config)
        _check(config, self.pixels.size[0])
        self.structure = {"ln_vision": LN_VISION_EPSILON}
        self.tower = self.seeded(self._build)
        self.measure(self._build)

    def _build(self) -> _Tower:
        return _Tower(self.config, self.pixels.size[0])

    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Frames [R,3,height,width] -> tokens [R,N,E]; the grid for `patches`, none for `queries` and `all`."""
        tokens = tower(x) if self.config.layers is None else tower.layers(x, self.config)
        return (tokens[:, 1:], tower.vit.grid) if self.config.tokens == "patches" else (tokens, None)

    def load_weights(self) -> None:
        """Fill everything from `config.weights`; at another `size` the position table is interpolated.

        Raises CheckpointError.
        """
        if self.config.weights is None:
            return
        path = locate(self.config.weights, self.config.revision)
        tensors = read_tensors(path)
        unread = (() if self.config.tokens == "queries" else QFORMER) + (() if self.config.norm else NORM)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(unread)}
        if self.config.size is not None and "vit.pos_embed" in tensors:
            tensors["vit.pos_embed"] = self.resized(tensors["vit.pos_embed"])
        fill(self.tower, tensors, str(path))

    def resized(self, table: Tensor) -> Tensor:
        """The position table of the trained size on this tower's grid, as published: bicubic, without anti-aliasing.

        [1,1+old height*old width,E] -> [1,1+height*width,E]. Raises ModelError for a table of another length.
        """
        side = self.config.trained_size // self.config.patch
        return resize_grid(table[0], (side, side), self.tower.vit.grid, prefix=1, antialias=False)[None]


def _check(config: Config, size: int) -> None:
    """Refuse what does not go together."""
    if config.tokens == "queries" and not config.norm:
        raise ConfigError("`norm: false` with `tokens: queries`", "`norm: true`, or tokens of the tower alone")
    for field, whole, part in (
        ("trained_size", config.trained_size, config.patch),
        ("size", size, config.patch),
        ("vit_heads", config.vit_width, config.vit_heads),
    ):
        if whole % part:
            raise ConfigError(f"`{field}`: {whole} is not a multiple of {part}", "sizes that divide")
