"""Another model of a recipe, such as a teacher: asked, and never trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mmtune.model import MultimodalModel
from mmtune.types import Batch, Features


class FrozenModel(MultimodalModel):
    """A model that is always in evaluation mode, gives no gradient, and computes in a precision of its own.

    Args:
        model: whose parts this takes over.
        autocast: a context for what it computes, whatever the one around it; none computes as its weights are.
    """

    def __init__(
        self, model: MultimodalModel, autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        super().__init__(dict(model.branches), model.llm, model.fusion, model.tuned)
        self._autocast = autocast
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenModel:
        super().train(False)
        return self

    def forward(self, batch: Batch, known: Mapping[str, Features] | None = None) -> Tensor:
        """hidden [B,T,D], after the last norm of the language model; `known` as in `encode`."""
        with torch.no_grad(), self._autocast():
            return super().forward(batch, known)

    def over_logits(self, function: Callable[..., Tensor], hidden: Tensor, *given: Tensor) -> list[Tensor]:
        with torch.no_grad(), self._autocast():
            return super().over_logits(function, hidden, *given)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n,D] -> float32 [n,V], for rows that are few enough to be held at once."""
        with torch.no_grad(), self._autocast():
            return self.llm.head(hidden).float()
