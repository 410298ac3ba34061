"""The loss of a model in a test, without a step."""

import torch

from mmtune import registry
from mmtune.objectives.base import Objective, ObjectiveConfig, label_count
from mmtune.objectives.cross_entropy import Config, CrossEntropy

registry.allow(["tests.losses:Remembers"])


def cross_entropy(model, batch):
    """The sum over labelled tokens, and what they count."""
    objective = CrossEntropy(Config())
    (loss,), (count,) = objective.loss(model, batch).values(), objective.counts(batch).values()
    return loss, count


class OfModel(Objective):
    """What a model without a head says itself: `model.loss(batch)`."""

    weighted = True

    def counts(self, batch):
        return {"loss": label_count(batch)}

    def loss(self, model, batch):
        return {"loss": model.loss(batch)}


class Streams(dict):
    """The same objective for every stream."""

    def __init__(self, objective=None):
        super().__init__()
        self.objective = objective or OfModel(ObjectiveConfig(name="test"))

    def __missing__(self, stream):
        return self.objective


class RowsAndTokens(OfModel):
    """Two terms that are means over other things: tokens, and rows."""

    def counts(self, batch):
        return {**super().counts(batch), "rows": len(batch.ids)}

    def loss(self, model, batch):
        return {**super().loss(model, batch), "rows": model.rows(batch)}


class Remembers(CrossEntropy):
    """A z-loss that grows with what was seen: it goes on alike only from the state that it gave."""

    def begin(self, model, groups, models):
        self.seen, self.begun = torch.zeros(()), sorted(groups)

    def loss(self, model, batch):
        self.seen = self.seen + len(batch.ids)
        sums = super().loss(model, batch)
        return {**sums, "z_loss": sums["z_loss"] * self.seen}

    def state(self):
        return {"seen": self.seen}

    def load(self, tensors):
        self.seen = tensors["seen"].clone()
