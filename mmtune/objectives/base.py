"""The contract of objectives: what a stream asks of the model. One file of this room is one objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mmtune.config import Config
from mmtune.types import Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


class ObjectiveConfig(Config):
    """What every objective's config has."""

    name: str
    """Name of the objective: its file in this room, or package.module:Class."""


class Objective(ABC):
    """The loss of one stream's batches.

    It gives a sum and its weight, never a mean: only the step knows the weight over all micro-steps and ranks, and
    divides once. Which groups the gradient reaches is no business of an objective; the recipe's groups say that.
    """

    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    weighted: ClassVar[bool] = False
    """Whether `loss` reads `batch.weights`. Where it does not, a record with weights of its own stops the run, for they
    would be left out without a word."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def check(self, model: MultimodalModel) -> None:  # noqa: B027
        """Told once, before the first step. Raises ConfigError when this model cannot be trained that way."""

    @abstractmethod
    def loss(self, model: MultimodalModel, batch: Batch) -> tuple[Tensor, float]:
        """The sum over everything that counts in this batch, each times its weight (float32 scalar, with gradient), and
        the sum of these weights: how many that is, where each counts 1.

        A batch of padding alone gives zero and 0, and runs the same modules: other ranks wait for them.
        """


Contract = Objective
