"""Features of several layers of a tower, side by side in every token.

A token of E numbers then has those of the first layer that is named, those of the second behind them, and so on:
any connector reads them as it reads one layer's, and a connector that tells them apart knows their number from
`FeatureShape.layers`. Stored features hold all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmtune.encoders.base import EncoderConfig
from mmtune.errors import ConfigError, ModelError


class LayersConfig(EncoderConfig):
    """What the config of a tower has whose layers can be asked for."""

    whole: ClassVar[tuple[str, ...]] = ("pooled", "logits", "queries")
    """Values of `tokens` that come from the whole tower and belong to no layer."""
    if TYPE_CHECKING:
        tokens: str

    layers: tuple[int, ...] | None = Field(default=None, min_length=1, exclude_if=lambda layers: layers is None)
    """Several blocks whose outputs stand side by side in each token, in this order: -1 is the last, -2 the one before
    it, 0 the first. A token is as many times wider; `layer` is not used then. Null takes one block."""

    @model_validator(mode="after")
    def _several(self) -> LayersConfig:
        if self.layers is None:
            return self
        if self.tokens in self.whole:
            raise ValueError(f"layers with tokens: {self.tokens}, which come from the whole tower and from no layer")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers: a block twice in {list(self.layers)}")
        return self

    def indexes(self, depth: int, what: str, layer: int = -1) -> list[int]:
        """The blocks that are wanted, counted from 0: `layers`, or `layer` where there are none.

        Raises ModelError for one outside of `depth` blocks, and for one that is named twice.
        """
        found = [layer_index(one, depth, what) for one in self.layers or (layer,)]
        if len(set(found)) < len(found):
            raise ModelError(f"layers {list(self.layers or ())} of {what} with {depth} blocks", "each block once")
        return found


def layer_index(layer: int, depth: int, what: str) -> int:
    """A layer counted from the end (-1 is the last block) or from 0, as an index from 0. Raises ModelError outside."""
    index = layer + depth if layer < 0 else layer
    if not 0 <= index < depth:
        raise ModelError(f"layer {layer} of {what} with {depth} blocks", f"-{depth}..-1 or 0..{depth - 1}")
    return index


def in_order(found: Sequence[Tensor], indexes: Sequence[int]) -> list[Tensor]:
    """Outputs of blocks, lowest first, in the order in which they were asked for."""
    lowest_first = dict(zip(sorted(indexes), found, strict=True))
    return [lowest_first[index] for index in indexes]


def one_grid(found: Sequence[Tensor]) -> tuple[int, int]:
    """The grid of layers [R,E,height,width]. Raises ConfigError for stages that have several."""
    grids = [(int(tokens.shape[-2]), int(tokens.shape[-1])) for tokens in found]
    if len(set(grids)) > 1:
        raise ConfigError(
            f"layers of a tower whose stages have grids of {' and '.join(map(str, grids))} tokens",
            "layers of one grid, as a ViT has",
            "take one of them, with `layer`",
        )
    return grids[0]


def side_by_side(found: Sequence[Tensor]) -> Tensor:
    """Layers [R,N,E] of one tower -> [R,N,layers*E]"""
    return found[0] if len(found) == 1 else torch.cat(list(found), dim=-1)


class _Reached(Exception):
    """Leaves a tower's forward once the uppermost wanted block is done."""


def block_outputs(run: Callable[[], Any], blocks: nn.ModuleList, indexes: Sequence[int]) -> list[Tensor]:
    """Outputs [R,N,E] of some blocks while `run` runs the tower, which is left behind the uppermost of them.

    Raises ModelError where a block did not run.
    """
    found: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: Any, output: Any) -> None:
            found[index] = output[0] if isinstance(output, tuple) else output
            if index == max(indexes):
                raise _Reached

        return hook

    handles = [blocks[index].register_forward_hook(keep(index)) for index in indexes]
    try:
        run()
    except _Reached:
        return [found[index] for index in indexes]
    finally:
        for handle in handles:
            handle.remove()
    raise ModelError("the tower ran without its own block", "a tower of transformers", "update transformers")
