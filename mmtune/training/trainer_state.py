"""The counters of a run, beside its weights: saved in a state, and read by a resumed run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RECENT = 20
"""Number of steps in the reported mean loss."""


@dataclass
class TrainerState:
    """What a run counts, beside its weights."""

    step: int = 0
    """Steps done."""
    nonfinite_steps: int = 0
    """Steps in a row, the last ones, whose loss or gradient was not finite."""
    recent: list[tuple[float, float]] = field(default_factory=list)
    """Loss of the last steps, and what their supervised tokens count."""
    micro_step_parts: int = 1
    """Parts into which each micro-step is split; more than 1 after it did not fit into memory."""
    validation: dict[str, Any] = field(default_factory=dict)
    """What validations have found, see `ValidationLoop.state`."""

    def add_loss(self, loss: float, weight: float) -> None:
        """Note the loss of a step that moved weights, and what its supervised tokens count."""
        self.recent = [*self.recent, (loss, weight)][-RECENT:]

    @property
    def loss(self) -> float | None:
        """Mean over the supervised tokens of the last steps; None when there was no step."""
        count = sum(n for _, n in self.recent)
        return sum(loss * n for loss, n in self.recent) / count if count else None
