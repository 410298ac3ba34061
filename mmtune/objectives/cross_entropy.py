"""The likelihood of the answers: cross entropy over supervised tokens, each token counting what its turn weighs."""

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
    """Nats, and the weight of the supervised tokens: their number, where no turn has a weight of its own."""

    Config = Config
    weighted = True

    def loss(self, model: MultimodalModel, batch: Batch) -> tuple[Tensor, float]:
        return model.loss(batch)
