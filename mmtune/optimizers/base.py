"""The contract of optimizers: how the gradients of a group become a step. One file of this room is one optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from mmtune.config import Config


class OptimizerConfig(Config):
    """What every optimizer's config has."""

    name: str
    """Name of the optimizer: its file in this room, or package.module:Class."""


class Optimizer(ABC):
    """Builds the `torch.optim.Optimizer` of a group, and says what that keeps.

    Gradients are summed, divided and clipped before its step, and a step with a number that is not finite is not
    taken. What it keeps is saved by names of parameters, so it has to be tensors, in `state[parameter]`; anything else
    it may keep for itself only where it follows from these. Learning rates of its `param_groups` are peaks: before each
    step they are multiplied by the group's schedule.
    """

    Config: ClassVar[type[OptimizerConfig]] = OptimizerConfig
    elementwise: ClassVar[bool] = False
    """Whether each number moves by its own gradients alone. Others are given whole tensors, one after the other, where
    tensors are cut over ranks, and what they keep is not cut."""
    uses_betas: ClassVar[bool] = False
    """Whether `build` reads `betas`. Where it does not, a group with `betas` of its own is refused."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config

    @abstractmethod
    def build(
        self, named: Sequence[tuple[str, Parameter]], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        """An optimizer over parameters.

        Args:
            named: full names and parameters.
            lr: peak learning rate.
            weight_decay: decoupled decay per step, times the learning rate; of matrices only, see `decay_matrices`.
            betas: decay of running means of the gradient and of its square.

        Raises:
            ConfigError: parameters that it cannot train.
            ModelError: a package that it needs is not installed.
        """

    @abstractmethod
    def state_of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept for a parameter after its first step, by name: empty tensors on the meta device with its shapes
        and types (see `kept`). The count `step` is left out."""


def decay_matrices(named: Sequence[tuple[str, Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for torch: matrices with decay, vectors and scalars (norms, biases, gates, gains) without.

    Pulling those to zero changes what the layer does, not how smooth it is.
    """
    matrices = [p for _, p in named if p.ndim >= 2]
    others = [p for _, p in named if p.ndim < 2]
    halves = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [half for half in halves if half["params"]]


def kept(parameter: Tensor, *names: str) -> dict[str, Tensor]:
    """Tensors of a parameter's own shape and type, by name, for `state_of`."""
    return {name: torch.empty(parameter.shape, dtype=parameter.dtype, device="meta") for name in names}


Contract = Optimizer
