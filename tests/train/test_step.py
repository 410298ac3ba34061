"""One step: the loss is per supervised token however the batch is cut up, and nothing bad reaches a weight."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmtune.train.distributed import Runtime
from mmtune.train.optim import GroupOptimizer
from mmtune.train.step import take_step
from mmtune.types import Batch

WIDTH = 5


class Toy(nn.Module):
    """Predicts numbers from embedded tokens by two matrices, one for each group."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.poison = None

    def loss(self, batch):
        x = torch.nn.functional.one_hot(batch.tokens, WIDTH).float()
        logits = self.b(torch.tanh(self.a(x)))
        wanted = batch.labels >= 0
        loss = nn.functional.cross_entropy(logits[wanted], batch.labels[wanted], reduction="sum")
        if self.poison == "gradient":
            # finite going forward, not finite going back
            loss = loss + (self.a.weight[0, 0] - self.a.weight[0, 0].detach()).abs().sqrt()
        elif self.poison is not None:
            loss = loss + self.poison
        return loss, int(wanted.sum())


def rows(first, last):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, WIDTH, (4, 6), generator=generator)
    labels = torch.randint(0, WIDTH, (4, 6), generator=generator)
    labels[0, 1:] = labels[2, ::2] = -100
    part, ids = slice(first, last), tuple(str(i) for i in range(first, last))
    shape = tokens[part].shape
    positions = torch.arange(6).expand(shape).contiguous()
    segments = torch.ones(shape, dtype=torch.int32)
    return Batch(tokens[part], labels[part], positions, segments, stream="s", ids=ids)


def setup():
    model = Toy()
    optimizers = {
        name: GroupOptimizer(name, list(getattr(model, name).named_parameters()), lr=0.1, weight_decay=0.1)
        for name in ("a", "b")
    }
    return model, optimizers, Runtime("cpu")


def values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_cutting_up_changes_nothing():
    results = []
    for cuts in ([(0, 4)], [(0, 1), (1, 4)], [(0, 2), (2, 3), (3, 4)]):
        model, optimizers, runtime = setup()
        for _ in range(3):
            outcome = take_step(model, [rows(*cut) for cut in cuts], optimizers, ["a", "b"], 1.0, runtime)
        results.append((outcome.loss, outcome.supervised, values(model)))
    for loss, count, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5) and count == results[0][1] == 1 + 6 + 3 + 6
        assert all(torch.allclose(weights[name], results[0][2][name], atol=1e-5) for name in weights)


def test_only_active_groups_move_and_no_gradient_stays():
    model, optimizers, runtime = setup()
    take_step(model, [rows(0, 4)], optimizers, ["a", "b"], 1.0, runtime)  # momentum is there from now on
    weights, state = values(model.a), {k: v.clone() for k, v in optimizers["a"].state().items()}
    outcome = take_step(model, [rows(0, 4)], optimizers, ["b"], 1.0, runtime)
    assert equal(weights, values(model.a)) and equal(state, optimizers["a"].state())
    assert set(outcome.norms) == {"b"}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf"), "gradient"])
def test_what_is_not_finite_moves_nothing(poison):
    model, optimizers, runtime = setup()
    take_step(model, [rows(0, 4)], optimizers, ["a", "b"], 1.0, runtime)
    weights, state = values(model), {k: v.clone() for k, v in optimizers["a"].state().items()}
    model.poison = poison
    outcome = take_step(model, [rows(0, 2), rows(2, 4)], optimizers, ["a", "b"], 1.0, runtime)
    assert not outcome.updated
    assert equal(weights, values(model)) and equal(state, optimizers["a"].state())
    model.poison = None
    assert take_step(model, [rows(0, 4)], optimizers, ["a", "b"], 1.0, runtime).updated, "and the run can go on"
    assert not equal(weights, values(model))


CHILD = """
import json, sys, torch
from tests.train.test_step import *
model, optimizers, runtime = setup()
first, last, poison = json.loads(sys.argv[1])[runtime.rank]
if poison: model.poison = float(poison)
for _ in range(3):
    outcome = take_step(model, [rows(first, last)], optimizers, ["a", "b"], 1.0, runtime)
weights = {n: t.tolist() for n, t in values(model).items()}
print(json.dumps([outcome.updated, outcome.loss, outcome.supervised, weights]))
runtime.close()
"""


def children(code, args, world=2):
    """What each rank prints, of a program that is started once for each."""
    codes, ended = start(code, args, world)
    if any(codes) and any("address already in use" in error.lower() for _, error in ended):
        codes, ended = start(code, args, world)  # somebody took the port between the look and the use
    assert not any(codes), "\n".join(error for _, error in ended)
    return [output for output, _ in ended]


def start(code, args, world):
    """Exit codes, and what the ranks wrote to stdout and stderr."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
        env = {**os.environ, **{name: str(value) for name, value in {**place, **where}.items()}}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", code, *args], env=env, **pipes))
    try:
        ended = [child.communicate(timeout=300) for child in started]
    finally:
        for child in started:
            child.kill()
    return [child.returncode for child in started], ended


def ranks(plan):
    return [json.loads(output.strip().splitlines()[-1]) for output in children(CHILD, [json.dumps(plan)])]


def test_two_ranks_are_one():
    model, optimizers, runtime = setup()
    for _ in range(3):
        alone = take_step(model, [rows(0, 4)], optimizers, ["a", "b"], 1.0, runtime)
    # uneven on purpose: one supervised token here, fifteen there
    left, right = ranks([(0, 1, None), (1, 4, None)])
    assert left == right
    assert left[0] and left[1] == pytest.approx(alone.loss, rel=1e-5) and left[2] == alone.supervised
    for name, tensor in values(model).items():
        assert torch.allclose(torch.tensor(left[3][name]), tensor, atol=1e-5)


def test_one_bad_rank_stops_both():
    untouched = {name: tensor.tolist() for name, tensor in values(Toy()).items()}
    for answer in ranks([(0, 2, None), (2, 4, "nan")]):
        assert answer[0] is False and answer[3] == untouched
