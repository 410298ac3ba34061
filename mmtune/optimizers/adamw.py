"""AdamW: steps of about the learning rate, by running means of gradient and square (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from mmtune.optimizers.base import Optimizer, decay_matrices, kept


class AdamW(Optimizer):
    """torch's AdamW. Keeps two numbers for each one that trains."""

    elementwise = uses_betas = True

    def build(
        self, named: Sequence[tuple[str, Parameter]], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        # fused sums in another order than the plain code; on a CPU it would tie results to the build
        fused = all(p.is_cuda for _, p in named)
        return torch.optim.AdamW(decay_matrices(named, weight_decay), lr=lr, betas=betas, fused=fused)

    def state_of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        return kept(parameter, "exp_avg", "exp_avg_sq")
