"""AdamW whose running means take a byte each, in blocks of 256 numbers (Dettmers et al. 2022), with bitsandbytes
(`pip install 'mmtune[8bit]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from mmtune.errors import ModelError
from mmtune.optimizers.base import Optimizer, OptimizerConfig, decay_matrices, kept

BLOCK = 256
"""Numbers that share a scale, and steps of the scale."""


class AdamW8bitConfig(OptimizerConfig):
    """Options of AdamW in 8 bits."""

    min_8bit_size: Annotated[int, Field(ge=1)] = 4096
    """Tensors of fewer numbers keep whole ones."""


class AdamW8bit(Optimizer):
    """bitsandbytes' AdamW8bit. Keeps two bytes for each number that trains."""

    Config = AdamW8bitConfig
    uses_betas = True
    config: AdamW8bitConfig

    def build(
        self, named: Sequence[tuple[str, Parameter]], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        try:
            from bitsandbytes.optim import AdamW8bit as EightBit
        except ImportError as error:
            raise ModelError(
                f"optimizer adamw_8bit, and bitsandbytes cannot be imported: {error}",
                "the package bitsandbytes",
                "pip install 'mmtune[8bit]', or optimizer: adamw",
            ) from error

        class Counted(EightBit):
            """Its count of steps is a tensor, as torch's is: what is kept is saved as tensors."""

            def init_state(self, group: Any, p: Parameter, gindex: int, pindex: int) -> None:
                super().init_state(group, p, gindex, pindex)
                self.state[p]["step"] = torch.zeros(())

            def update_step(self, group: Any, p: Parameter, gindex: int, pindex: int) -> None:
                state = self.state[p]
                state["step"] = int(state["step"])
                super().update_step(group, p, gindex, pindex)
                state["step"] = torch.tensor(float(state["step"]))

        groups = decay_matrices(named, weight_decay)
        return Counted(groups, lr=lr, betas=betas, min_8bit_size=self.config.min_8bit_size)

    def state_of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        if parameter.numel() < self.config.min_8bit_size:
            return {key: one.float() for key, one in kept(parameter, "state1", "state2").items()}
        held = {}
        for number in ("1", "2"):
            held[f"state{number}"] = torch.empty(parameter.shape, dtype=torch.uint8, device="meta")
            held[f"qmap{number}"] = torch.empty(BLOCK, device="meta")
            held[f"absmax{number}"] = torch.empty(-(-parameter.numel() // BLOCK), device="meta")
        return held
