"""What a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def held_bytes(run: Callable[[], object], *parts: nn.Module) -> int:
    """Bytes of all tensors that `run` keeps for the backward pass, each once; weights of `parts` are left out."""
    own = {parameter.untyped_storage().data_ptr() for part in parts for parameter in part.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # or another tensor may take its place in memory
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(seen.values())
