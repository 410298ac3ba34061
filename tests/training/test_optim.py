from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmtune.errors import CheckpointError
from mmtune.training.optim import GroupOptimizer, lr_multiplier


def test_schedule_by_hand():
    got = [lr_multiplier(s, steps=6, warmup=2, lr_schedule="linear") for s in range(6)]
    assert got == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
    got = [lr_multiplier(s, steps=6, warmup=2, lr_schedule="cosine") for s in range(6)]
    assert got == pytest.approx([0.5, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0])
    assert lr_multiplier(5, 6, 2, "cosine", min_lr_ratio=0.1) == pytest.approx(0.1)
    assert {lr_multiplier(s, 6, 0, "constant") for s in range(6)} == {1.0}


def make(max_grad_norm=1.0, decay=0.1):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    return layer, GroupOptimizer(
        "g", list(layer.named_parameters()), lr=0.1, weight_decay=decay, max_grad_norm=max_grad_norm
    )


def test_clipping_bounds_the_norm():
    layer, optimizer = make(max_grad_norm=0.5)
    layer.weight.grad = torch.full((2, 3), 10.0)
    layer.bias.grad = torch.full((2,), 10.0)
    optimizer.accumulate(divide=2.0)
    optimizer.restore_grads()
    norm = optimizer.norm()
    assert norm.item() == pytest.approx(5 * math.sqrt(8))
    optimizer.step(norm, 1.0)
    after = math.sqrt(float(layer.weight.grad.pow(2).sum() + layer.bias.grad.pow(2).sum()))
    assert after == pytest.approx(0.5)


def test_decay_acts_on_matrices_only():
    layer, optimizer = make(decay=0.5)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step(optimizer.norm(), 1.0)
    assert torch.equal(layer.bias, bias)
    assert torch.allclose(layer.weight, weight * (1 - 0.1 * 0.5))


def test_state_there_and_back():
    layer, optimizer = make()
    for _ in range(3):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step(optimizer.norm(), 1.0)
        optimizer.zero_grad()
    saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert set(saved) == {f"{p}/{k}" for p in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")}
    twin, other = make()
    twin.load_state_dict(layer.state_dict())
    other.load(saved)
    for model, opt in ((layer, optimizer), (twin, other)):
        model(torch.ones(1, 3)).sum().backward()
        opt.step(opt.norm(), 0.5)
    assert torch.equal(layer.weight, twin.weight) and torch.equal(layer.bias, twin.bias)


def test_foreign_state_is_refused():
    _, optimizer = make()
    with pytest.raises(CheckpointError, match="other/exp_avg"):
        optimizer.load({"other/exp_avg": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="weight/exp_avg"):
        optimizer.load({"weight/exp_avg": torch.zeros(9)})


def test_half_cosine_counts_the_steps_done():
    """LLaMA-Adapter's schedule; asked for in steps, or in epochs that need not be whole."""
    got = [lr_multiplier(s, steps=6, warmup=2, lr_schedule="half_cosine") for s in range(7)]
    assert got == pytest.approx([0, 0.5, 1, 0.8535534, 0.5, 0.1464466, 0])
    assert lr_multiplier(1.5, 4, 1, "half_cosine") == pytest.approx(0.9330127)
    assert lr_multiplier(3.9, 4, 1, "half_cosine", min_lr_ratio=0.5) == pytest.approx(0.5 + 0.5 * 2.739052315863355e-3)
    assert [lr_multiplier(s, 4, 4, "half_cosine") for s in (0, 2, 4)] == [0, 0.5, 0]
