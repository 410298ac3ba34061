"""Direct preference optimization: the preferred of two answers becomes likelier than the other one, as measured from a
reference, which is the model as the run began.

Rafailov et al. 2023. Streams bring pairs (`format: preference`). The price beside cross entropy: each batch has
one more forward pass, without gradient, and a copy of what trains stays in memory and in saved states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor

from mmtune.objectives._preference import dpo
from mmtune.objectives.base import Objective, ObjectiveConfig
from mmtune.params import Named
from mmtune.reference import Reference
from mmtune.sequences import log_probs, pairs, tokens
from mmtune.types import Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


class Config(ObjectiveConfig):
    name: str = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How closely the model is held to the reference: a small one lets it go far."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Part of the preferences that are taken to be the wrong way round."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the cross entropy of the preferred answers beside it, which keeps them from getting less likely; 0 for
    none."""


class DPO(Objective):
    """Terms: `dpo`, a mean over pairs; `sft`, one over the tokens of preferred answers.

    Measured are rewards, beta times the log of the ratio to the reference: `chosen` and `rejected`, their difference
    `margin`, and `accuracy`, the part of the pairs in which it is above zero.
    """

    Config = Config
    config: Config
    unit = "pair"
    sequences, copies = 2, 1
    measures = {"accuracy": "higher", "margin": "higher", "chosen": "higher", "rejected": "lower"}

    def begin(self, model: MultimodalModel, groups: Mapping[str, Named], models: Mapping[str, MultimodalModel]) -> None:
        self._reference = Reference(groups)

    def counts(self, batch: Batch) -> dict[str, float]:
        terms = dict.fromkeys(("dpo", *self.measures), float(len(batch.ids)))
        return {**terms, "sft": sum(tokens(batch)[0::2])} if self.config.sft_weight else terms

    def loss(self, model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
        known = model.frozen_features(batch)
        with self._reference.swapped_in(model):
            reference = log_probs(model, batch, known)
        found = log_probs(model, batch, known)
        chosen, rejected = pairs(found - reference)
        rewards = [self.config.beta * ratios.detach() for ratios in (chosen, rejected)]
        terms = {
            "dpo": dpo(chosen, rejected, self.config.beta, self.config.label_smoothing).sum(),
            "accuracy": (rewards[0] > rewards[1]).float().sum(),
            "margin": (rewards[0] - rewards[1]).sum(),
            "chosen": rewards[0].sum(),
            "rejected": rewards[1].sum(),
        }
        if self.config.sft_weight:
            terms["sft"] = -self.config.sft_weight * pairs(found)[0].sum()
        return terms

    def state(self) -> dict[str, Tensor]:
        return self._reference.state()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._reference.load(tensors)
