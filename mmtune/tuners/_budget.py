"""What AdaLoRA has to do in every step: sensitivities, the falling budget of ranks, and the penalty that keeps the
factors orthogonal (arXiv 2303.10512). The arithmetic is peft's own; here are the calls, and the state to resume from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mmtune.errors import CheckpointError, ConfigError
from mmtune.tuners.base import StepCallback

UNKNOWN = 10**9
"""Stands for the number of steps until it is known."""
_MEANS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class Budget(StepCallback):
    """Around peft's `AdaLoraModel`, which knows its config and its rank allocator.

    The number of steps is that of the steps in which this tuner trains; of several streams, of those that train it.
    """

    def __init__(self, tuner: Any, adapter: str) -> None:
        self.model, self.config, self.ranks = tuner.model, tuner.peft_config[adapter], tuner.rankallocator
        self.step = 0
        self.pattern: dict[str, list[bool]] = {}
        """Ranks that stay, by name of their singular values; empty until the budget is settled."""
        self._own = [p for n, p in self.model.named_parameters() if f".{adapter}" in n and ".lora_" in n]

    def parameters(self) -> Sequence[Parameter]:
        return self._own

    def begin(self, steps: int) -> None:
        config = self.config
        if steps <= config.tinit + config.tfinal:
            raise ConfigError(
                f"adalora with tinit {config.tinit} and tfinal {config.tfinal} in {steps} steps that train it",
                "steps between the two, in which the budget falls",
                "lower them, or raise schedule.steps",
            )
        config.total_step = steps

    def penalty(self) -> Tensor | None:
        """The mean over all factors of the distance between their product with themselves and the identity, times
        `orth_reg_weight`."""
        if not self.config.orth_reg_weight:
            return None
        found = []
        for name, p in self.model.named_parameters():
            if id(p) in self._ids and ("lora_A" in name or "lora_B" in name):
                square = p @ p.T if "lora_A" in name else p.T @ p
                found.append(torch.linalg.matrix_norm(square - torch.eye(len(square)).to(square)))
        return self.config.orth_reg_weight * torch.stack(found).mean()

    @property
    def _ids(self) -> set[int]:
        return {id(p) for p in self._own}

    def updated(self) -> None:
        self.step += 1
        last = self.config.total_step - self.config.tfinal
        if self.step < last:
            self.ranks.update_and_allocate(self.model, self.step)
        elif self.step == last:
            _, self.pattern = self.ranks.update_and_allocate(self.model, self.step, force_mask=True)
            self.ranks.reset_ipt()
        else:
            self.ranks.mask_using_rank_pattern(self.model, self.pattern)

    def state(self) -> dict[str, Tensor]:
        tensors = {"step": torch.tensor(self.step)}
        for kind in _MEANS:
            tensors |= {f"{kind}/{name}": mean for name, mean in getattr(self.ranks, kind).items()}
        return tensors | {f"pattern/{name}": torch.tensor(kept) for name, kept in self.pattern.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        known = dict(self.model.named_parameters())
        wrong = [full for full in tensors if full != "step" and full.partition("/")[2] not in known]
        if wrong or "step" not in tensors:
            raise CheckpointError(f"state of adalora: {', '.join(wrong) or 'no step'}", "that of this model")
        self.step, self.pattern = int(tensors["step"]), {}
        self.ranks.reset_ipt()
        for full, tensor in tensors.items():
            kind, _, name = full.partition("/")
            if kind in _MEANS:
                getattr(self.ranks, kind)[name] = tensor.to(known[name].device)
            elif kind == "pattern":
                self.pattern[name] = tensor.tolist()
