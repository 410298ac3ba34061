"""Gradient descent, with or without momentum; its decay is decoupled, as everywhere here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from mmtune.optimizers.base import Optimizer, OptimizerConfig, decay_matrices, kept


class SGDConfig(OptimizerConfig):
    """Options of gradient descent."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of the last step that is taken again; 0 keeps nothing."""
    nesterov: bool = False
    """Look ahead along the momentum."""


class SGD(Optimizer):
    """torch's SGD. Keeps nothing, or with momentum one number for each one that trains."""

    Config = SGDConfig
    elementwise = True
    config: SGDConfig

    def build(
        self, named: Sequence[tuple[str, Parameter]], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        config = self.config
        nesterov = config.nesterov and config.momentum > 0
        return _Decoupled(decay_matrices(named, weight_decay), lr=lr, momentum=config.momentum, nesterov=nesterov)

    def state_of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        return kept(parameter, "momentum_buffer") if self.config.momentum else {}


class _Decoupled(torch.optim.SGD):
    """torch adds `weight_decay` to the gradient, so that momentum carries it along; here it shrinks the weights."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0
            for parameter in group["params"] if decay else ():
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * decay)
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
