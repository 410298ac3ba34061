"""A folder of LLaVA as `transformers` opens it, compared with the run that it was written from."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mmtune.checkpoint.foreign.base import Ask
from mmtune.errors import CheckpointError
from mmtune.llm._outside import Llava

GREYS, MEAN_GREYS = 4.0, 0.25
"""Steps of 8-bit colour by which a pixel may be off, and all of them on average: libraries round otherwise when they
resize."""


def compare(folder: Path, ask: Ask) -> None:
    """Raises CheckpointError for a folder that `transformers` refuses, or makes another model of."""
    outside = Llava(folder)
    for media, example, logits in ask.pictures():
        (slot,), ((item,),) = example.slots, example.media.values()
        pixels, std = outside.pixels(media.data[0])
        ours = _tiles(item, pixels)
        off = (ours - pixels).abs() * std.view(3, 1, 1) * 255
        if float(off.max()) > GREYS or float(off.mean()) > MEAN_GREYS:
            raise CheckpointError(
                f"the image processor of transformers makes other pixels of a picture: off by {float(off.max()):.1f} "
                f"of 255, on average {float(off.mean()):.2f}",
                f"the pixels of the run, to {GREYS:g} of 255",
                "the layout knows resize: crop, pad and stretch, mean, std and rgb; size is that of the tower",
            )
        size = (int(media.data.shape[-2]), int(media.data.shape[-1]))
        theirs = outside.logits(example.tokens, (slot.start, slot.length), ours, size)
        words = min(logits.shape[1], theirs.shape[1])
        ask.close("what transformers says to a picture", logits[:, :words], theirs[:, :words])


def _tiles(item: Tensor, like: Tensor) -> Tensor:
    """Our prepared picture [F,...], which may carry marks after its pixels, as their tiles [tiles,3,size,size]."""
    if item.ndim == 4:
        found = item
    else:
        found = item[:, : like[0].numel()].reshape(-1, *like.shape[1:])
    if found.shape != like.shape:
        raise CheckpointError(
            f"the image processor of transformers makes {list(like.shape)} of a picture, the run {list(found.shape)}",
            "as many tiles of the same size",
            "the layout has no word for `size`, nor for grids that are no multiple of the tower's",
        )
    return found
