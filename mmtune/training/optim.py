"""One optimizer and one learning rate for each parameter group.

A single optimizer over all groups would move a group in the steps of other streams: momentum and weight decay act
even on a zero gradient. With one optimizer per group a step touches what it owns and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from mmtune.errors import CheckpointError
from mmtune.optimizers.adamw import AdamW
from mmtune.optimizers.base import Optimizer, OptimizerConfig
from mmtune.params import SchedulerType
from mmtune.sharded import like, whole
from mmtune.training.stand_ins import is_cut, stand_in, standing_in


def lr_multiplier(
    step: float, steps: float, warmup: float, lr_schedule: SchedulerType = "cosine", min_lr_ratio: float = 0.0
) -> float:
    """What the learning rate of a group is multiplied by in step `step` (0-based) of the `steps` that train it.

    Rises linearly over `warmup` steps to 1, then falls to `min_lr_ratio` at the last step (cosine, linear) or stays.
    `half_cosine` is the same curve one step later, as MAE and LLaMA-Adapter count: by the steps done before, so that
    the first step of the warm-up moves nothing; it may be asked for in epochs, whole or not.
    """
    if lr_schedule == "half_cosine":
        if step < warmup:
            return step / warmup
        done = min(1.0, (step - warmup) / (steps - warmup)) if steps > warmup else 1.0
        return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))
    if step < warmup:
        return (step + 1) / warmup
    if lr_schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup + 1) / max(1, steps - warmup))
    share = 0.5 * (1 + math.cos(math.pi * done)) if lr_schedule == "cosine" else 1.0 - done
    return min_lr_ratio + (1 - min_lr_ratio) * share


class GroupOptimizer:
    """The optimizer of one group, whatever it is: clipping, the learning rate, and a state by names.

    Args:
        name: name of the group.
        named: full names and parameters.
        lr: peak learning rate.
        weight_decay: decoupled decay per step, times the learning rate (Loshchilov and Hutter 2019, algorithm 2).
        max_grad_norm: largest norm of the gradient of this group; 0 turns clipping off.
        entry: builds it; AdamW when not given.
    """

    def __init__(
        self,
        name: str,
        named: Sequence[tuple[str, Parameter]],
        lr: float,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        entry: Optimizer | None = None,
    ) -> None:
        self.name, self.max_grad_norm = name, max_grad_norm
        self.named, self.entry = list(named), entry or AdamW(OptimizerConfig(name="adamw"))
        whole_only = not self.entry.elementwise and any(is_cut(p) for _, p in self.named)
        self._stand_ins = [(full, stand_in(p)) for full, p in self.named] if whole_only else []
        """What the optimizer knows in place of parameters that are cut over ranks, where it needs them whole."""
        self._known = dict(self._stand_ins or self.named)
        self.optimizer = self.entry.build(self._stand_ins or self.named, lr, weight_decay, betas)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self._held: dict[Parameter, Tensor] = {}

    @property
    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named]

    def accumulate(self, divide: float) -> None:
        """Divide the gradients by `divide` and put them aside, on top of what is there; none are left."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                grad = parameter.grad.div_(divide)
                self._held[parameter] = self._held[parameter].add_(grad) if parameter in self._held else grad
                parameter.grad = None

    def restore_grads(self) -> None:
        """Make what lies aside the gradients."""
        for parameter, grad in self._held.items():
            parameter.grad = grad
        self._held = {}

    def holds(self, ids: Collection[int]) -> bool:
        """Whether any parameter's id is among these."""
        return any(id(parameter) in ids for parameter in self.parameters)

    def zero_grad_params(self) -> list[str]:
        """Names of parameters without a gradient, or with one of zeros."""
        grads = {name: parameter.grad for name, parameter in self.named}
        return [n for n, grad in grads.items() if grad is None or not float(whole(torch.linalg.vector_norm(grad)))]

    def norm(self) -> Tensor:
        """The joint norm of the gradients (a scalar, in float32 at least)."""
        norms = []
        for grad in (parameter.grad for parameter in self.parameters):
            if grad is not None:
                norms.append(torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32)))
        if not norms:
            return torch.zeros(())
        # norms of what is cut over ranks are put together once, not one by one
        cut = [norm for norm in norms if hasattr(norm, "full_tensor")]
        if not cut:
            return torch.linalg.vector_norm(torch.stack(norms))
        joint = whole(torch.linalg.vector_norm(torch.stack(cut)))
        # with offload, what is cut is in the main memory and the rest on the device
        rest = [norm.to(joint.device) for norm in norms if not hasattr(norm, "full_tensor")]
        return torch.linalg.vector_norm(torch.stack([joint, *rest]))

    def step(self, norm: Tensor, lr_multiplier: float) -> None:
        """Clip to the group's limit and take one step with the learning rate times `lr_multiplier`."""
        if self.max_grad_norm > 0 and norm > self.max_grad_norm:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_((self.max_grad_norm / norm).to(parameter.grad.device))
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * lr_multiplier
        if not self._stand_ins:
            self.optimizer.step()
        for (_, parameter), (_, other) in zip(self.named, self._stand_ins, strict=False):
            if parameter.grad is not None:
                with standing_in(parameter, other):
                    self.optimizer.step()

    def zero_grad(self, held: bool = True) -> None:
        """Forget the gradients, and those that lie aside if `held`."""
        for parameter in self.parameters:
            parameter.grad = None
        if held:
            self._held = {}

    def state(self) -> dict[str, Tensor]:
        """Everything that moves, by `<parameter name>/<what>`; empty before the first step."""
        return {
            f"{name}/{key}": value.detach()
            for name, parameter in self._known.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: a name or shape that does not belong to this group.
        """
        # the step count stays on the CPU unless the fused code wants it beside the weights
        beside = any(group.get("fused") for group in self.optimizer.param_groups)
        whole_named, wrong = dict(self.named), []
        self.optimizer.state.clear()
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            parameter = self._known.get(name)
            if parameter is not None and key == "step":
                self.optimizer.state[parameter][key] = (value.to(parameter.device) if beside else value).clone()
                continue
            expected = None if parameter is None else self.entry.state_of(name, whole_named[name]).get(key)
            if expected is None or value.shape != expected.shape:
                wrong.append(full)
                continue
            held = like(value, parameter).to(expected.dtype)  # where another version kept them shorter
            self.optimizer.state[parameter][key] = held.clone()
        if wrong:
            raise CheckpointError(
                seen=f"optimizer state for {', '.join(wrong[:5])} ({len(wrong)} in all)",
                expected=f"names and shapes of the group {self.name!r}, as its optimizer {self.entry.config.name} has",
                hint="the model of this recipe, or its optimizer, is not the one that was saved; keep it, or begin a "
                "new run with these weights: run.init_from=FOLDER",
            )
