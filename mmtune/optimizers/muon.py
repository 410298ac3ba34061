"""Muon for matrices: the step is the momentum made orthogonal (Jordan et al. 2024); everything else by AdamW.

With `match_rms_adamw` (Liu et al. 2025, Muon is Scalable for LLM Training) its steps are as long as AdamW's, so
learning rate and decay of a group that AdamW trained can stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from mmtune.config import Words
from mmtune.errors import ConfigError
from mmtune.optimizers.base import Optimizer, OptimizerConfig, decay_matrices, kept


class MuonConfig(OptimizerConfig):
    """Options of Muon."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running mean of gradients that is made orthogonal."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    """Newton-Schulz iterations, in bfloat16."""
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How the rate follows the shape of a matrix of A rows and B columns: 0.2 sqrt(max(A, B)), the length of AdamW's
    steps, or sqrt(max(1, A / B))."""
    adamw: Words = ("*embed*", "*lm_head*")
    """Globs over full parameter names: matrices that AdamW trains all the same, such as tables of embeddings."""


class Muon(Optimizer):
    """torch's Muon and AdamW as one. Keeps one number for each one in a matrix, and two for each other."""

    Config = MuonConfig
    uses_betas = True
    config: MuonConfig

    def _takes(self, name: str, parameter: Tensor) -> bool:
        return parameter.ndim == 2 and not any(fnmatchcase(name, pattern) for pattern in self.config.adamw)

    def build(
        self, named: Sequence[tuple[str, Parameter]], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        config = self.config
        matrices = [p for name, p in named if self._takes(name, p)]
        if not matrices:
            raise ConfigError(
                f"optimizer muon for a group without a matrix for it: {', '.join(name for name, _ in named[:4])}",
                f"a parameter of two axes that is none of {', '.join(config.adamw)}",
                "optimizer: adamw",
            )
        muon = torch.optim.Muon(
            matrices,
            lr=lr,
            weight_decay=weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_steps=config.ns_steps,
            adjust_lr_fn=config.adjust_lr_fn,
        )
        rest = decay_matrices([(name, p) for name, p in named if not self._takes(name, p)], weight_decay)
        return _Joint([muon, *([torch.optim.AdamW(rest, lr=lr, betas=betas)] if rest else [])])

    def state_of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        mine = ("momentum_buffer",) if self._takes(name, parameter) else ("exp_avg", "exp_avg_sq")
        return kept(parameter, *mine)


class _Joint(torch.optim.Optimizer):
    """Several optimizers with one state and one list of groups."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self._parts = list(parts)
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for part in self._parts:
            part.step()
