"""The likelihood of the answers: cross entropy over supervised tokens, each token counting what its turn weighs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmtune.objectives.base import Objective, ObjectiveConfig, label_count
from mmtune.types import IGNORE, Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


class Config(ObjectiveConfig):
    name: str = "cross_entropy"
    z_loss: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of the z-loss: the square of the logarithm of the softmax's denominator, which keeps logits from drifting
    (PaLM, arXiv 2204.02311, takes 1e-4); 0 leaves it out."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of each label that is spread evenly over the whole vocabulary."""


class CrossEntropy(Objective):
    """Nats, and the weight of the supervised tokens: their number, where no turn has a weight of its own."""

    Config = Config
    config: Config
    weighted = True

    def counts(self, batch: Batch) -> dict[str, float]:
        return dict.fromkeys(self._terms, label_count(batch))

    def loss(self, model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
        hidden, wanted = model(batch), batch.labels != IGNORE
        given = [batch.labels[wanted], *([] if batch.weights is None else [batch.weights[wanted]])]
        sums = partial(token_sums, z_loss=self.config.z_loss, label_smoothing=self.config.label_smoothing)
        pieces = model.over_logits(sums, hidden[wanted], *given)
        if not pieces:
            return dict.fromkeys(self._terms, hidden.sum().float() * 0)
        return dict(zip(self._terms, (term.sum() for term in torch.stack(pieces, 1)), strict=True))

    @property
    def _terms(self) -> list[str]:
        return ["cross_entropy", *(["z_loss"] if self.config.z_loss else [])]


def token_sums(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Sums over tokens, each times its weight (1 where there are none), in nats: of the cross entropy, and of the
    z-loss times `z_loss` where that is not 0.

    Args:
        logits: float32 [n,V].
        labels: int64 [n].
        weights: float32 [n].

    Returns:
        float32 [1] or [2].
    """
    reduction = "sum" if weights is None else "none"
    nats = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)
    sums = [nats if weights is None else (nats * weights).sum()]
    if z_loss:
        squares = logits.logsumexp(-1).square()
        sums.append(z_loss * (squares if weights is None else squares * weights).sum())
    return torch.stack(sums)
