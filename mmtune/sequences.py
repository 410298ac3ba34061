"""What a model says of each sequence of a batch, and of both answers of each pair: for objectives that compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtune.types import IGNORE, Batch, Features

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


def log_probs(model: MultimodalModel, batch: Batch, known: Mapping[str, Features] | None = None) -> Tensor:
    """The log-probability (nats, float32 [n]) of the labelled tokens of each sequence, summed.

    Sequences are in the order of the samples. The sum of one is the same wherever it is packed. A batch of padding
    gives float32 [0], and runs the same modules.

    Args:
        known: features that need not be encoded, see `MultimodalModel.frozen_features`.
    """
    hidden, wanted = model(batch, known), batch.labels != IGNORE
    each = model.token_log_probs(hidden[wanted], batch.labels[wanted])
    counts = tokens(batch)
    return torch.stack([part.sum() for part in each.split(counts)]) if counts else each


def tokens(batch: Batch) -> list[int]:
    """Labelled tokens of each sequence, in the order of the samples."""
    most = batch.segments.amax(1)
    before = most.cumsum(0) - most  # sequences of the rows above
    index = (before[:, None] + batch.segments - 1)[batch.labels != IGNORE]
    return torch.bincount(index, minlength=int(most.sum())).tolist()


def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [2 n] of the sequences of n pairs -> [n] of the preferred answers, and [n] of the others."""
    return values[0::2], values[1::2]
