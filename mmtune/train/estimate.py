"""What a run will take, said before it starts: tokens, optimizer steps, memory.

The memory of weights, gradients and optimizers is counted; that of activations is a rule of thumb and is marked so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn import Parameter

WORDS_PER_ACTIVATION = 18
"""Values kept for the backward pass per token, layer and unit of width: about what a Llama block with fused
attention keeps (inputs of its four norms and seven matrix products, whose inner ones are wider)."""


@dataclass(frozen=True)
class Estimate:
    """Numbers of one rank, bytes and tokens."""

    steps: int
    tokens_per_step: int
    samples: dict[str, int]
    """Samples of each stream in its data."""
    trained: int
    """Parameters that train."""
    frozen: int
    weights: int
    optimizer: int
    activations: int

    @property
    def tokens(self) -> int:
        """Places in the rows of all steps, padding included: an upper bound."""
        return self.steps * self.tokens_per_step

    @property
    def memory(self) -> int:
        return self.weights + self.optimizer + self.activations

    def lines(self) -> list[str]:
        data = ", ".join(f"{name} {count:,}" for name, count in self.samples.items())
        return [
            f"data      samples in each stream: {data}",
            f"tokens    at most {self.tokens:,} ({self.steps:,} steps of at most {self.tokens_per_step:,})",
            f"weights   {self.trained:,} train, {self.frozen:,} are frozen",
            f"memory    about {size(self.memory)}: weights {size(self.weights)}, gradients and optimizers "
            f"{size(self.optimizer)}, activations roughly {size(self.activations)}",
        ]


def estimate(
    model: nn.Module,
    groups: Mapping[str, list[tuple[str, Parameter]]],
    samples: Mapping[str, int],
    steps: int,
    row_tokens: int,
    accumulate: int,
    frozen_bytes: int = 4,
    activation_bytes: int = 4,
) -> Estimate:
    """Count a model as built.

    Args:
        row_tokens: most places of one micro-step, all rows together.
        accumulate: micro-steps in a step.
        frozen_bytes: bytes of a frozen weight as it will lie on the device.
        activation_bytes: bytes of one value kept for the backward pass.
    """
    trained = {id(p): p.numel() for named in groups.values() for _, p in named}
    everything = sum(p.numel() for p in model.parameters())
    train = sum(trained.values())
    llm = model.llm
    activations = row_tokens * llm.width * llm.depth * WORDS_PER_ACTIVATION * activation_bytes
    return Estimate(
        steps=steps,
        tokens_per_step=row_tokens * accumulate,
        samples=dict(samples),
        trained=train,
        frozen=everything - train,
        weights=train * 4 + (everything - train) * frozen_bytes,
        optimizer=train * 12,
        activations=activations,
    )


def size(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
