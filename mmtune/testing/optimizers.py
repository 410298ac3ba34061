"""Checks of optimizers: they find a minimum, resume to the bit, decay matrices only, and keep what they say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import Parameter

from mmtune.optimizers.base import Optimizer, OptimizerConfig
from mmtune.training.optim import GroupOptimizer

SHAPES = {"layer.weight": (6, 4), "layer.bias": (4,), "embed.weight": (5, 3), "kernel": (2, 3, 3), "gate": ()}
"""A matrix, a vector, a table, more axes, a scalar."""
LR = 0.1
STEPS = 300


def make(cls: type[Optimizer], settings: OptimizerConfig) -> Optimizer:
    """An optimizer of the room."""
    return cls(settings)


def numbers(seed: int) -> dict[str, Tensor]:
    """Random tensors of SHAPES."""
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}


def group(optimizer: Optimizer, weight_decay: float = 0.0, seed: int = 0) -> GroupOptimizer:
    """The optimizer over new parameters, without clipping."""
    named = [(name, Parameter(value)) for name, value in numbers(seed).items()]
    return GroupOptimizer("test", named, LR, weight_decay, 0.0, entry=optimizer)


def take(one: GroupOptimizer, steps: Sequence[int], multiplier: float = 1.0) -> None:
    """Steps by random gradients, which follow from their numbers."""
    for step in steps:
        for (_, parameter), gradient in zip(one.named, numbers(1000 + step).values(), strict=True):
            parameter.grad = gradient
        one.step(one.norm(), multiplier)
        one.zero_grad()


def moved(one: GroupOptimizer, before: dict[str, Tensor]) -> list[str]:
    """Names of parameters that differ from `before`."""
    return [name for name, parameter in one.named if not torch.equal(parameter, before[name])]


def a_quadratic_is_solved(optimizer: Optimizer) -> None:
    """The squared distance from a target falls below a twentieth, by a rate that falls to zero."""
    one, target = group(optimizer), numbers(1)

    def loss() -> Tensor:
        return torch.stack([(parameter - target[name]).square().sum() for name, parameter in one.named]).sum()

    first = float(loss().detach())
    for step in range(STEPS):
        loss().backward()
        one.step(one.norm(), 1 - step / STEPS)
        one.zero_grad()
    last = float(loss().detach())
    assert last < first / 20, f"a squared distance of {first:.3g} falls to {last:.3g} in {STEPS} steps"


def a_saved_state_goes_on_to_the_bit(optimizer: Optimizer) -> None:
    """Through a file, by names, into a new optimizer: the next steps are those of one that never stopped."""
    straight, stopped = group(optimizer), group(optimizer)
    take(straight, range(6))
    take(stopped, range(3))
    state, again = load(save({name: value.clone() for name, value in stopped.state().items()})), group(optimizer)
    with torch.no_grad():
        for (_, parameter), (_, held) in zip(again.named, stopped.named, strict=True):
            parameter.copy_(held)
    again.load(state)
    take(again, range(3, 6))
    different = moved(again, {name: parameter.detach() for name, parameter in straight.named})
    assert different == [], f"other numbers after a resume: {', '.join(different)}"
    kept, wanted = again.state(), straight.state()
    assert kept.keys() == wanted.keys(), f"state of {', '.join(kept.keys() ^ wanted.keys())}"
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted), "another state after a resume"


def decay_acts_on_matrices_only(optimizer: Optimizer) -> None:
    """Without a gradient to follow, a matrix shrinks by rate times decay; vectors and scalars stay."""
    one, before = group(optimizer, weight_decay=0.5), numbers(0)
    for _, parameter in one.named:
        parameter.grad = torch.zeros_like(parameter)
    one.step(one.norm(), 1.0)
    for name, parameter in one.named:
        wanted = before[name] * (1 - LR * 0.5) if parameter.ndim >= 2 else before[name]
        assert torch.allclose(parameter, wanted), f"{name} {list(parameter.shape)} decays by another factor"


def it_keeps_what_it_says(optimizer: Optimizer) -> None:
    """Names, shapes and types of its state are those of `state_of`; a parameter without a gradient has none."""
    one = group(optimizer)
    take(one, range(1))
    for name, parameter in one.named:
        held = one.optimizer.state.get(parameter, {})
        odd = [key for key, value in held.items() if not isinstance(value, Tensor)]
        assert odd == [], f"{', '.join(odd)} of {name} is no tensor and cannot be saved"
        real = {key: (value.shape, value.dtype) for key, value in held.items() if key != "step"}
        said = {key: (value.shape, value.dtype) for key, value in optimizer.state_of(name, parameter).items()}
        assert real == said, f"{name}: keeps {real}, says {said}"


def without_a_gradient_nothing_moves(optimizer: Optimizer) -> None:
    """Neither the weight, by its decay, nor a state."""
    one, still = group(optimizer, weight_decay=0.5), "layer.weight"
    take(one, range(2))
    before = {name: parameter.detach().clone() for name, parameter in one.named}
    state = {name: value.clone() for name, value in one.state().items() if name.startswith(still)}
    for name, parameter in one.named:
        parameter.grad = None if name == still else torch.ones_like(parameter)
    one.step(one.norm(), 1.0)
    assert still not in moved(one, before), "a weight without a gradient moved"
    now = one.state()
    assert all(torch.equal(now[name], value) for name, value in state.items()), "a state without a gradient moved"


def the_rate_is_multiplied(optimizer: Optimizer) -> None:
    """A rate of zero moves no weight."""
    one, before = group(optimizer, weight_decay=0.5), numbers(0)
    take(one, range(2), multiplier=0.0)
    assert moved(one, before) == [], "a step of rate zero moves weights"


def parts_move_as_the_whole(optimizer: Optimizer) -> None:
    """One that is `elementwise` gives the rows of a matrix the same numbers, together or apart."""
    if not optimizer.elementwise:
        return
    values, gradients = numbers(0)["layer.weight"], [numbers(1000 + step)["layer.weight"] for step in range(3)]
    results = []
    for cuts in ([6], [2, 4]):
        parts = [(f"part{n}.weight", Parameter(part.clone())) for n, part in enumerate(values.split(cuts))]
        one = GroupOptimizer("test", parts, LR, 0.1, 0.0, entry=optimizer)
        for gradient in gradients:
            for (_, parameter), part in zip(parts, gradient.split(cuts), strict=True):
                parameter.grad = part.clone()
            one.step(one.norm(), 1.0)
        results.append(torch.cat([parameter.detach() for _, parameter in parts]))
    assert torch.allclose(*results, rtol=1e-6, atol=1e-7), "a matrix that is cut by rows moves in another way"


CHECKS = (
    a_quadratic_is_solved,
    it_keeps_what_it_says,
    a_saved_state_goes_on_to_the_bit,
    decay_acts_on_matrices_only,
    without_a_gradient_nothing_moves,
    the_rate_is_multiplied,
    parts_move_as_the_whole,
)
