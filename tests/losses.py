"""The loss of a model in a test, without a step."""

from mmtune.objectives.base import Objective, ObjectiveConfig, label_count
from mmtune.objectives.cross_entropy import Config, CrossEntropy


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
