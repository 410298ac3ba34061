"""Objectives of the proofs: with a term that is a mean over other things, and with something to go on from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmtune import registry
from mmtune.model import MultimodalModel
from mmtune.objectives.base import Objective, ObjectiveConfig, label_count
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.types import IGNORE, Batch

TWO_TERMS = "tools.proofs._objectives:TwoTerms"
GROWING = {"name": "tools.proofs._objectives:Growing", "z_loss": 0.01}


class TwoTerms(Objective):
    """Cross entropy by token, and the squares of the same numbers by sample."""

    Config = ObjectiveConfig

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"tokens": label_count(batch), "samples": len(batch.ids)}

    def loss(self, model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
        hidden, wanted = model(batch), batch.labels != IGNORE
        nats = -model.token_log_probs(hidden[wanted], batch.labels[wanted])
        return {"tokens": nats.sum(), "samples": 0.1 * nats.square().sum()}


class Growing(CrossEntropy):
    """A z-loss that grows with every micro-step: a run goes on alike only from what was saved of it."""

    def begin(self, *given: object) -> None:
        self.seen = torch.zeros(())

    def loss(self, model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
        self.seen = self.seen + torch.is_grad_enabled()
        sums = super().loss(model, batch)
        return {**sums, "z_loss": sums["z_loss"] * self.seen}

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.seen = tensors["seen"].clone()


registry.allow([TWO_TERMS, GROWING["name"]])
