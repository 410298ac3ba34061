"""The contract of tuners: change a language model in place, and say what was added or opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from mmtune.config import Config
from mmtune.llm.base import LLM


class TunerConfig(Config):
    """What every tuner's config has."""

    name: str
    """Name of the tuner: its file in this room, or package.module:Class."""


class Tuner(ABC):
    """One way to tune a language model with few parameters."""

    Config: ClassVar[type[TunerConfig]] = TunerConfig

    def __init__(self, config: TunerConfig) -> None:
        self.config = config

    @abstractmethod
    def apply(self, llm: LLM) -> list[str]:
        """Change `llm` in place; return the names, relative to it, of the parameters added or opened.

        A freshly tuned model computes what it computed before. Raises ModelError when nothing fits.
        """


class StepCallback(ABC):
    """What a tuner has to do in every training step, for the few that are more than parameters.

    A tuner leaves one in `llm.step_callbacks`, by a name of its own. It is asked in the steps that train all of its
    parameters, and in no others, on every rank alike. A run calls `begin` once, then `load` where it continues from a
    saved state; each step calls `before`, then `penalty`, then `updated`. The last two are left out where something was
    not finite, and `before` is called once however often a step is tried for want of memory. Only `parameters` has to
    be there.
    """

    @abstractmethod
    def parameters(self) -> Sequence[Parameter]:
        """The parameters that it works on."""

    def begin(self, steps: int) -> None:  # noqa: B027
        """Called once, before the first step, with the number of steps in which it will be called. Raises ConfigError
        for too few."""

    def before(self, step: int, generator: torch.Generator) -> None:  # noqa: B027
        """Before the forward pass of step `step` of the run (0-based).

        Args:
            generator: on the CPU, for draws: a function of the run's seed and the step, the same on every rank.
        """

    def penalty(self) -> Tensor | None:
        """A scalar to be added to the mean loss of the step, with its gradient; none for nothing. Gradients are summed
        over the ranks by now, so it counts once."""
        return None

    def updated(self) -> None:  # noqa: B027
        """After the optimizer's step, with the step's gradients still there."""

    def state(self) -> dict[str, Tensor]:
        """All state that changes while training, as tensors for a saved state."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take back what `state` gave. Raises CheckpointError for what does not fit."""


Contract = Tuner
