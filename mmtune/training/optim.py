"""One optimizer and one learning rate for each parameter group.

A single optimizer over all groups would move a group in the steps of other streams: momentum and weight decay act
even on a zero gradient. With one optimizer per group a step touches what it owns and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from mmtune.checkpoint.tensors import like, whole
from mmtune.errors import CheckpointError
from mmtune.params import SchedulerType


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
    """AdamW over the parameters of one group. Weight decay acts on matrices only.

    Vectors and scalars (norms, biases, gates, gains) are left out of the decay: pulling them to zero changes what
    the layer does, not how smooth it is.

    Args:
        name: name of the group.
        named: full names and parameters.
        lr: peak learning rate.
        weight_decay: decoupled decay per step, times the learning rate (Loshchilov and Hutter 2019, algorithm 2).
        max_grad_norm: largest norm of the gradient of this group; 0 turns clipping off.
    """

    def __init__(
        self,
        name: str,
        named: Sequence[tuple[str, Parameter]],
        lr: float,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.name, self.lr, self.max_grad_norm = name, lr, max_grad_norm
        self.named = list(named)
        matrices = [p for _, p in self.named if p.ndim >= 2]
        others = [p for _, p in self.named if p.ndim < 2]
        halves = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        on_device = all(p.is_cuda for _, p in self.named)
        # fused sums in another order than the plain code; on a CPU it would tie results to the build
        self.adamw = torch.optim.AdamW([h for h in halves if h["params"]], lr=lr, betas=betas, fused=on_device)

        self._held: dict[Parameter, Tensor] = {}

    @property
    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named]

    def accumulate(self, divide: float) -> None:
        """Divide the gradients by `divide` and put them aside, on top of what lies there; none are left."""
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

    @property
    def unused(self) -> bool:
        """Whether no parameter has a gradient, not even one of zeros."""
        return all(parameter.grad is None for parameter in self.parameters)

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
        # with offload, what is cut lies in the main memory and the rest on the device
        rest = [norm.to(joint.device) for norm in norms if not hasattr(norm, "full_tensor")]
        return torch.linalg.vector_norm(torch.stack([joint, *rest]))

    def step(self, norm: Tensor, lr_multiplier: float) -> None:
        """Clip to the group's limit and take one step with the learning rate times `lr_multiplier`."""
        if self.max_grad_norm > 0 and norm > self.max_grad_norm:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_((self.max_grad_norm / norm).to(parameter.grad.device))
        for half in self.adamw.param_groups:
            half["lr"] = self.lr * lr_multiplier
        self.adamw.step()

    def zero_grad(self, held: bool = True) -> None:
        """Forget the gradients, and those that lie aside if `held`."""
        for parameter in self.parameters:
            parameter.grad = None
        if held:
            self._held = {}

    def state(self) -> dict[str, Tensor]:
        """Everything that moves, by `<parameter name>/<what>`; empty before the first step."""
        tensors = {}
        for name, parameter in self.named:
            for key, value in self.adamw.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value.detach()
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: a name or shape that does not belong to this group.
        """
        known = dict(self.named)
        wrong = []
        self.adamw.state.clear()
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            parameter = known.get(name)
            if parameter is None or (key != "step" and value.shape != parameter.shape):
                wrong.append(full)
                continue
            # the step count stays on the CPU unless the fused code wants it beside the weights
            beside = self.adamw.param_groups[0]["fused"]
            held = like(value, parameter) if key != "step" else value.to(parameter.device) if beside else value
            if key != "step":
                held = held.to(parameter.dtype)  # where another version kept them shorter
            self.adamw.state[parameter][key] = held.clone()
        if wrong:
            raise CheckpointError(
                seen=f"optimizer state for {', '.join(wrong[:5])} ({len(wrong)} in all)",
                expected=f"names and shapes of the group {self.name!r}",
                hint="the model of this recipe is not the one that was saved",
            )
