"""Learning from a teacher: cross entropy of the answers, and the divergence from what another model would say.

The teacher is a run in the section `models` of the recipe. At each supervised token, p being the teacher's and q the
trained model's probabilities over the vocabulary, both at a temperature T, the second term is T^2 * KL(p || q) (Hinton,
Vinyals and Dean 2015, arXiv 1503.02531). Costs a forward pass of the teacher; logits of both are held for a piece of
the tokens at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmtune.frozen_model import FrozenModel
from mmtune.objectives.base import Objective, ObjectiveConfig, label_count
from mmtune.objectives.cross_entropy import token_sums
from mmtune.params import Named
from mmtune.types import IGNORE, Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


class Config(ObjectiveConfig):
    name: str = "distill"
    teacher: str = "teacher"
    """Name of the teacher in the section `models`."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """What logits of both are divided by; above 1 the teacher's second choices count more."""
    kl: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of the divergence."""
    cross_entropy: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the cross entropy; 0 learns from the teacher alone."""

    def model_names(self) -> tuple[str, ...]:
        return (self.teacher,)


class Distill(Objective):
    """Nats, two terms over the same tokens, each counting what its turn weighs."""

    Config = Config
    config: Config
    weighted = True

    def begin(self, model: MultimodalModel, groups: Mapping[str, Named], models: Mapping[str, FrozenModel]) -> None:
        self.teacher = models[self.config.teacher]

    def counts(self, batch: Batch) -> dict[str, float]:
        return dict.fromkeys(("cross_entropy", "kl"), label_count(batch))

    def loss(self, model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
        hidden, taught, wanted = model(batch), self.teacher(batch), batch.labels != IGNORE
        given = [taught[wanted], batch.labels[wanted], *([] if batch.weights is None else [batch.weights[wanted]])]
        pieces = model.over_logits(self._sums, hidden[wanted], *given)
        sums = torch.stack(pieces).sum(0) if pieces else hidden.sum().float().expand(2) * 0
        return {"cross_entropy": self.config.cross_entropy * sums[0], "kl": self.config.kl * sums[1]}

    def _sums(self, logits: Tensor, taught: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """float32 [n,V], the teacher's hidden [n,D'], int64 [n], float32 [n] -> [2], the sums of both terms."""
        divergence = forward_kl(logits, self.teacher.logits(taught), self.config.temperature)
        weighted = divergence if weights is None else divergence * weights
        return torch.cat([token_sums(logits, labels, weights), weighted.sum()[None]])


def forward_kl(logits: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """float32 [n,V], float32 [n,V'] of the teacher -> [n], T^2 * KL(teacher || student) in nats.

    Tables of models of different sizes may be filled up to different multiples: ids that only one has are left out.
    """
    ids = min(logits.shape[-1], taught.shape[-1])
    ours, theirs = (F.log_softmax(one[..., :ids] / temperature, -1) for one in (logits, taught))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
