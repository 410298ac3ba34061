"""The contract of objectives: what a stream asks of the model. One file of this room is one objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from mmtune.config import Config
from mmtune.params import Named
from mmtune.types import IGNORE, Batch

if TYPE_CHECKING:
    from mmtune.frozen_model import FrozenModel
    from mmtune.model import MultimodalModel


Better = Literal["higher", "lower"]


class ObjectiveConfig(Config):
    """What every objective's config has."""

    name: str
    """Name of the objective: its file in this room, or package.module:Class."""

    def model_names(self) -> tuple[str, ...]:
        """The other models that it asks, by their names in the section `models`."""
        return ()


class Objective(ABC):
    """The loss of one stream's batches, as one term or several.

    For each term it gives a sum and a count, never a mean: only the step knows the counts over all micro-steps and
    ranks, and divides once. The first term is the primary one. The loss of a step is the sum of the means of all
    terms; it and the gradient are the same however the batches of the step are cut. A weight that a term has in the
    loss is multiplied into its sum. Which groups the gradient reaches is no business of an objective; the recipe's
    groups say that.
    """

    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    unit: ClassVar[str] = "token"
    """What the primary term is a mean over, for those who read a loss: token, pair, item."""
    weighted: ClassVar[bool] = False
    """Whether `counts` and `loss` read `batch.weights`. Where they do not, a record with weights of its own stops the
    run, for they would be left out without a word."""

    sequences: ClassVar[int] = 1
    """Conversations that a sample has, see `Batch.samples`: 2 for pairs of answers. A sample that has others stops the
    run."""
    copies: ClassVar[int] = 0
    """How often it holds what trains, as a `mmtune.reference.Reference` does once: for the estimate of memory."""
    measures: ClassVar[Mapping[str, Better]] = {}
    """Names among those of `counts` and `loss` that are no part of the loss: their means are logged. And which is
    better."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def check(self, model: MultimodalModel) -> None:  # noqa: B027
        """Called once, before the first step. Raises ConfigError when this model cannot be trained that way."""

    def begin(  # noqa: B027
        self, model: MultimodalModel, groups: Mapping[str, Named], models: Mapping[str, FrozenModel]
    ) -> None:
        """Called once, after `check` and before `load`, with the model as it is before its first step.

        Args:
            groups: group to the names and parameters that it trains, see `mmtune.params.partition`.
            models: the recipe's other models by name, frozen; None where it names none.

        Raises:
            ConfigError: a model that is missing or does not fit.
        """

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """Term to what its sum is divided by, from the batch alone: how much there is in this batch, each times its
        weight. The terms are the same for every batch, and each is 0 for padding alone."""

    @abstractmethod
    def loss(self, model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
        """Term to its sum over everything that `counts` counts in this batch (float32 scalars, with gradient).

        A batch of padding alone gives zeros, and runs the same modules: other ranks wait for them.
        """

    def state(self) -> dict[str, Tensor]:
        """Tensors that a saved state needs, beside the weights of the model. They are the same on every rank, for the
        first rank saves them."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take back what `state` gave. Raises CheckpointError for what does not fit."""


def label_count(batch: Batch) -> float:
    """What the labelled tokens of a batch count: their number, or the sum of their weights where it has weights."""
    wanted = batch.labels != IGNORE
    if batch.weights is None:
        return int(wanted.sum())
    return float(batch.weights[wanted].cpu().double().sum())


Contract = Objective
