"""The likelihood of the answers: cross entropy over supervised tokens, each token counting what its turn weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtune.objectives.base import Objective, ObjectiveConfig, label_count
from mmtune.types import IGNORE, Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


class Config(ObjectiveConfig):
    name: str = "cross_entropy"


class CrossEntropy(Objective):
    """Nats, and the weight of the supervised tokens: their number, where no turn has a weight of its own."""

    Config = Config
    weighted = True

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"cross_entropy": label_count(batch)}

    def loss(self, model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
        hidden, wanted = model(batch), batch.labels != IGNORE
        given = [batch.labels[wanted], *([] if batch.weights is None else [batch.weights[wanted]])]
        pieces = model.over_logits(token_sums, hidden[wanted], *given)
        return {"cross_entropy": torch.stack(pieces).sum() if pieces else hidden.sum().float() * 0}


def token_sums(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """float32 [n,V], int64 [n], float32 [n] or none -> the sum of the cross entropy (nats), each times its weight."""
    if weights is None:
        return F.cross_entropy(logits, labels, reduction="sum")
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
