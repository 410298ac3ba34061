"""Position tables: a learned row per frame, and resizing a learned grid to another grid."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.errors import ModelError


class FramePositions(nn.Embedding):
    """A learned vector for each frame ordinal (not for its time in seconds), initialised N(0,1) as nn.Embedding does.

    Key in a checkpoint: `weight` [rows,E], the layout of Video-LLaMA's `video_frame_position_embedding`.
    """

    def forward(self, frames: int) -> Tensor:
        """Number of frames F -> [F,E]. Raises ModelError when the table has fewer rows."""
        if frames > self.num_embeddings:
            raise ModelError(
                seen=f"an item of {frames} frames",
                expected=f"at most {self.num_embeddings}, the rows of the frame position table",
                hint="raise the connector's `frames`, or lower the encoder's `frames`",
            )
        return self.weight[:frames]


def resize_grid(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int, antialias: bool = True
) -> Tensor:
    """A learned position table on another patch grid, by bicubic interpolation, with anti-aliasing unless told not to.

    [prefix + old height * old width, E] -> [prefix + new height * new width, E], both row-major; the first `prefix`
    rows (class token) are kept. Equal grids return the table itself.
    """
    if table.shape[0] != prefix + old[0] * old[1]:
        raise ModelError(
            seen=f"a position table of {table.shape[0]} rows",
            expected=f"{prefix} + {old[0]} * {old[1]} rows",
            hint="the weights belong to another patch size or another number of class tokens",
        )
    if old == new:
        return table
    head, body = table[:prefix], table[prefix:]
    body = body.T.reshape(1, -1, *old).float()
    body = F.interpolate(body, size=new, mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([head, body[0].flatten(1).T.to(table.dtype)])


@lru_cache(maxsize=64)
def pooling_matrix(size: int, bins: int, device: torch.device | str = "cpu") -> Tensor:
    """Adaptive average pooling along one axis as a matrix: float32 [bins,size], every row sums to 1.

    Bin i averages floor(i*size/bins) .. ceil((i+1)*size/bins)-1; bins overlap when `bins` does not divide `size`, and
    repeat inputs when `bins` is larger. Pooling over several axes is the product of the axes' matrices. The result is
    kept and shared: do not write to it.
    """
    # A matrix first asked for while answering must serve training later, so it may not become an inference tensor.
    with torch.inference_mode(False):
        low = torch.arange(bins, device=device) * size // bins
        high = -(-(torch.arange(1, bins + 1, device=device) * size) // bins)
        index = torch.arange(size, device=device)
        inside = (index >= low[:, None]) & (index < high[:, None])
        return inside.float() / (high - low)[:, None].float()


def pool_grid(x: Tensor, grid: tuple[int, int], bins: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of a row-major grid of tokens.

    [...,grid height * grid width,E] -> [...,bins height * bins width,E]
    """
    if grid == bins:
        return x
    rows, columns = (pooling_matrix(a, b, x.device) for a, b in zip(grid, bins, strict=True))
    return torch.matmul(torch.kron(rows, columns).to(x.dtype), x)
