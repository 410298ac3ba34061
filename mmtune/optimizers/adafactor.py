"""Adafactor: AdamW's scaling from the means of rows and columns alone (Shazeer and Stern 2018), in little memory.

`lr` is the largest relative step: a tensor moves by at most `lr` times its root mean square, by less as steps go by
(1 / sqrt(step)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from mmtune.optimizers.base import Optimizer, OptimizerConfig, decay_matrices, kept


class AdafactorConfig(OptimizerConfig):
    """Options of Adafactor."""

    beta2_decay: Annotated[float, Field(le=0)] = -0.8
    """The running mean of squares forgets by 1 - step^this."""
    clip_threshold: Annotated[float, Field(ge=1)] = 1.0
    """Largest root mean square of an update before it is scaled down."""


class Adafactor(Optimizer):
    """torch's Adafactor. Keeps one number a row and column of matrices, and one for each of a vector."""

    Config = AdafactorConfig
    config: AdafactorConfig

    def build(
        self, named: Sequence[tuple[str, Parameter]], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        config = self.config
        groups = decay_matrices(named, weight_decay)
        return torch.optim.Adafactor(groups, lr=lr, beta2_decay=config.beta2_decay, d=config.clip_threshold)

    def state_of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        if parameter.ndim < 2:
            return kept(parameter, "variance")
        *rest, rows, columns = parameter.shape
        sizes = {"row_var": (*rest, rows, 1), "col_var": (*rest, 1, columns)}
        return {key: torch.empty(size, dtype=parameter.dtype, device="meta") for key, size in sizes.items()}
