"""Device, precision and process group: the only file that knows accelerate.

Trainable weights are replicated. After the backward passes of a step their gradients are summed over the ranks
as one flat buffer, by this file and not by a wrapper around the model: the model keeps its parameter names, a step
may leave out whole groups, and a run of one rank does none of it. Sharding of big models is not here yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from mmtune.errors import ConfigError

Precision = Literal["fp32", "bf16"]


class Runtime:
    """One process of a run.

    Args:
        device: `auto` takes the accelerator of this rank where there is one; otherwise a torch device name.
        precision: `bf16` computes matrix products in bfloat16 under autocast and keeps frozen weights in
            bfloat16; weights that train, their gradients and their optimizers stay in float32.
    """

    def __init__(self, device: str = "auto", precision: Precision = "fp32") -> None:
        from accelerate import PartialState

        # Only the process group is accelerate's: its device and precision are settled once for a whole process, and
        # a process may train twice.
        self._state = PartialState(cpu=device == "cpu")
        self.rank: int = self._state.process_index
        self.world: int = self._state.num_processes
        self.precision = precision
        if device == "auto":
            self.device = self._state.device if self.world > 1 else _best()
        else:
            self.device = _device(device)

    @property
    def main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to the device; frozen floating point weights take the precision of the run."""
        if self.precision == "bf16":
            for parameter in model.parameters():
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(torch.bfloat16)
        return model.to(self.device)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up `.grad` over all ranks, in place. A parameter without a gradient counts as zeros.

        Every rank must call this with the same parameters in the same order.
        """
        if self.world == 1:
            return
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for grads in by_type.values():
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            torch.distributed.all_reduce(flat)
            for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum each value over the ranks, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        # gloo and NCCL both take float64
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes; all ranks get the same answer."""
        return self.total([float(flag)])[0] > 0

    def gather(self, words: Sequence[str]) -> list[str]:
        """The words of all ranks, in the order of the ranks."""
        if self.world == 1:
            return list(words)
        mine = json.dumps(list(words)).encode()
        sizes = self.total([len(mine) if rank == self.rank else 0 for rank in range(self.world)])
        table = torch.zeros(self.world, int(max(sizes)), dtype=torch.int32, device=self.device)
        table[self.rank, : len(mine)] = torch.tensor(list(mine), dtype=torch.int32)
        torch.distributed.all_reduce(table)
        rows = [bytes(row[: int(size)]) for row, size in zip(table.tolist(), sizes, strict=True)]
        return [word for row in rows for word in json.loads(row)]

    def barrier(self) -> None:
        if self.world > 1:
            self._state.wait_for_everyone()

    def close(self) -> None:
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _best() -> torch.device:
    """The accelerator of this machine, or the processor."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            seen=f"device {name!r}", expected="auto, cpu, cuda, cuda:N or mps", hint=str(error)
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            seen=f"device {name!r}",
            expected="a machine with a CUDA device",
            hint="take run.device=auto or run.device=cpu",
        )
    return device
