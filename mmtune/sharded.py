"""Tensors that may be cut over ranks (DTensor): put together, and cut like others. Every rank calls these alike."""

from __future__ import annotations

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is, or put together where it is cut over ranks."""
    put = getattr(tensor, "full_tensor", None)
    return put() if put else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as another one is held: on its device, and this rank's part of it where that is cut over ranks."""
    mesh = getattr(other, "device_mesh", None)
    if mesh is None:
        return tensor.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    # every rank has the whole of it, so nothing is sent
    return distribute_tensor(tensor, mesh, other.placements, src_data_rank=None).to(other.device)
