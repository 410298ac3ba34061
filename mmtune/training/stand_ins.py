"""Whole tensors for an optimizer that needs them, where parameters are cut over ranks: one at a time, for one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from mmtune.sharded import like, whole


def is_cut(tensor: Tensor) -> bool:
    """Whether a tensor is cut over ranks."""
    return hasattr(tensor, "full_tensor")


def stand_in(parameter: Parameter) -> Parameter:
    """A plain parameter of the shape, type and device of another one, which takes no memory."""
    return Parameter(torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape))


@contextmanager
def standing_in(parameter: Parameter, other: Parameter) -> Iterator[None]:
    """Within, `other` is the whole of `parameter`, gradient included, on every rank; then each rank keeps its part."""
    bare = other.data
    other.data, other.grad = whole(parameter.detach()), whole(parameter.grad)
    try:
        yield
        with torch.no_grad():
            parameter.copy_(like(other.data, parameter))
    finally:
        other.data, other.grad = bare, None
