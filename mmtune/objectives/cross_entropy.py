"""The likelihood of the answers: cross entropy over supervised tokens, each token counting the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmtune.objectives.base import Objective, ObjectiveConfig
from mmtune.types import Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


class Config(ObjectiveConfig):
    name: str = "cross_entropy"


class CrossEntropy(Objective):
    """Nats, and the number of supervised tokens."""

    Config = Config

    def loss(self, model: MultimodalModel, batch: Batch) -> tuple[Tensor, int]:
        return model.loss(batch)
