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

from mmtune.objectives.base import label_count
from mmtune.training.distributed import Runtime
from mmtune.training.gradients import OutOfMemory
from mmtune.training.optim import GroupOptimizer
from mmtune.training.step import take_step
from mmtune.types import Batch
from tests.losses import Streams

WIDTH = 5
ROWS = 8


class Full(torch.autograd.Function):
    """There is room going forward, and none going back, in the words of the processor's allocator."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")


class Toy(nn.Module):
    """Predicts numbers from embedded tokens by two matrices, one for each group."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.poison = None

    def loss(self, batch):
        if self.poison == "no room":
            raise torch.OutOfMemoryError("no room")
        x = torch.nn.functional.one_hot(batch.tokens, WIDTH).float()
        hidden = torch.tanh(self.a(x))
        logits = self.b(hidden.detach() if self.poison == "cut" else hidden)
        wanted = batch.labels >= 0
        loss = nn.functional.cross_entropy(logits[wanted], batch.labels[wanted], reduction="sum")
        if self.poison == "gradient":
            # finite going forward, not finite going back
            loss = loss + (self.a.weight[0, 0] - self.a.weight[0, 0].detach()).abs().sqrt()
        elif self.poison == "no room going back":
            loss = Full.apply(loss)
        elif self.poison not in (None, "cut"):
            loss = loss + self.poison
        return loss


def rows(first, last, stream="s"):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, WIDTH, (ROWS, 6), generator=generator)
    labels = torch.randint(0, WIDTH, (ROWS, 6), generator=generator)
    labels[0, 1:] = labels[2, ::2] = labels[5, 2:] = -100
    part, ids = slice(first, last), tuple(str(i) for i in range(first, last))
    shape = tokens[part].shape
    positions = torch.arange(6).expand(shape).contiguous()
    segments = torch.ones(shape, dtype=torch.int32)
    return Batch(tokens[part], labels[part], positions, segments, stream=stream, ids=ids)


def setup(cls=Toy):
    model = cls()
    optimizers = {
        name: GroupOptimizer(name, list(getattr(model, name).named_parameters()), lr=0.1, weight_decay=0.1)
        for name in ("a", "b")
    }
    return model, optimizers, Runtime("cpu")


def step(model, batches, optimizers, groups, runtime, **more):
    """A step of the stream s, which trains these groups."""
    multipliers = dict.fromkeys(optimizers, 1.0)
    return take_step(model, batches, optimizers, {"s": groups}, multipliers, runtime, Streams(), **more)


def values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def close(left, right, limit=1e-6):
    """The largest difference of two sets of weights is below a limit."""
    return max(float((left[name] - right[name]).abs().max()) for name in left) <= limit


def trained(cuts, steps=3):
    model, optimizers, runtime = setup()
    for _ in range(steps):
        outcome = step(model, [rows(*cut) for cut in cuts], optimizers, ["a", "b"], runtime)
    return outcome, values(model)


CUTS = {
    "1x8": [(0, 8)],
    "2x4": [(0, 4), (4, 8)],
    "8x1": [(row, row + 1) for row in range(8)],
    "uneven": [(0, 1), (1, 6), (6, 8)],
}


@pytest.mark.parametrize("name", list(CUTS)[1:])
def test_cutting_up_changes_nothing(name):
    whole, weights = trained(CUTS["1x8"])
    outcome, others = trained(CUTS[name])
    assert outcome.supervised == whole.supervised == 1 + 6 + 3 + 6 + 6 + 2 + 6 + 6
    assert outcome.loss == pytest.approx(whole.loss, rel=1e-6)
    assert {n: pytest.approx(v, rel=1e-6) for n, v in whole.norms.items()} == outcome.norms
    assert close(weights, others)


def test_the_mean_of_means_would_be_something_else():
    """What this file guards against: a loss that is first averaged in each micro-step."""
    model, _, _ = setup()
    with torch.no_grad():
        means = [float(model.loss(rows(*cut)) / label_count(rows(*cut))) for cut in CUTS["8x1"]]
        whole, count = model.loss(rows(0, 8)), label_count(rows(0, 8))
        assert abs(sum(means) / len(means) - float(whole / count)) > 1e-3


def test_only_active_groups_move_and_no_gradient_stays():
    model, optimizers, runtime = setup()
    step(model, [rows(0, 4)], optimizers, ["a", "b"], runtime)  # momentum is there from now on
    weights, state = values(model.a), {k: v.clone() for k, v in optimizers["a"].state().items()}
    outcome = step(model, [rows(0, 4)], optimizers, ["b"], runtime)
    assert equal(weights, values(model.a)) and equal(state, optimizers["a"].state())
    assert set(outcome.norms) == {"b"}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf"), "gradient"])
def test_what_is_not_finite_moves_nothing(poison):
    model, optimizers, runtime = setup()
    step(model, [rows(0, 4)], optimizers, ["a", "b"], runtime)
    weights, state = values(model), {k: v.clone() for k, v in optimizers["a"].state().items()}
    model.poison = poison
    outcome = step(model, [rows(0, 2), rows(2, 4)], optimizers, ["a", "b"], runtime)
    assert not outcome.updated
    assert equal(weights, values(model)) and equal(state, optimizers["a"].state())
    model.poison = None
    assert step(model, [rows(0, 4)], optimizers, ["a", "b"], runtime).updated, "and the run can go on"
    assert not equal(weights, values(model))


CHILD = """
import json, sys, torch
from mmtune.training.step import Outcome
from tests.training.test_step import *
answers = {}
for name, plan in json.loads(sys.argv[1]).items():
    first, last, poison = plan[Runtime("cpu").rank]
    model, optimizers, runtime = setup()
    if poison: model.poison = float(poison) if poison == "nan" else poison
    try:
        for _ in range(3):
            outcome = step(model, [rows(first, last)], optimizers, ["a", "b"], runtime, check_grads=True)
    except OutOfMemory as error:
        outcome = Outcome(0.0, error.ranks, 0, 0, {}, False)
    weights = {n: t.tolist() for n, t in values(model).items()}
    answers[name] = [outcome.updated, outcome.loss, outcome.supervised, weights, sorted(outcome.unused_groups)]
print(json.dumps([answers, runtime.all_gather_strings([f"r{runtime.rank}", "x" * runtime.rank] * runtime.rank)]))
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


PLANS = {
    # uneven on purpose: one supervised token here, the rest there
    "split": [(0, 1, None), (1, 8, None)],
    "nan": [(0, 4, None), (4, 8, "nan")],
    "no room": [(0, 4, None), (4, 8, "no room")],
    "no room going back": [(0, 4, "no room going back"), (4, 8, None)],
    "cut here": [(0, 4, "cut"), (4, 8, None)],
    "cut everywhere": [(0, 4, "cut"), (4, 8, "cut")],
}
"""First row, row after the last and poison of each rank."""


@pytest.fixture(scope="module")
def ranks():
    """What both ranks answer to each plan; started once, for starting is what takes time."""
    outputs = [json.loads(output.strip().splitlines()[-1]) for output in children(CHILD, [json.dumps(PLANS)])]
    assert outputs[0][1] == outputs[1][1] == ["r1", "x"], "words are gathered from all ranks"
    return {name: [answers[name] for answers, _ in outputs] for name in PLANS}


def untouched():
    return {name: tensor.tolist() for name, tensor in values(Toy()).items()}


def test_two_ranks_are_one(ranks):
    alone, weights = trained(CUTS["1x8"])
    left, right = ranks["split"]
    assert left == right
    assert left[0] and left[1] == pytest.approx(alone.loss, rel=1e-6) and left[2] == alone.supervised
    assert close({name: torch.tensor(tensor) for name, tensor in left[3].items()}, weights)


def test_a_group_is_unreached_where_no_rank_reaches_it(ranks):
    """A sum over ranks has zeros for it, but nobody takes these for a gradient that is zero."""
    assert [answer[4] for answer in ranks["cut everywhere"]] == [["a"], ["a"]]
    assert [answer[4] for answer in ranks["cut here"]] == [[], []]


def test_one_bad_rank_stops_both(ranks):
    for answer in ranks["nan"]:
        assert answer[0] is False and answer[3] == untouched()


@pytest.mark.parametrize(("name", "rank"), [("no room", 1), ("no room going back", 0)])
def test_a_rank_without_memory_is_named_by_both(ranks, name, rank):
    for answer in ranks[name]:
        assert answer[0] is False and answer[2] == [rank] and answer[3] == untouched()


# ------------------------------------------------------------------------------------------------------ out of memory


@pytest.mark.parametrize("when", ["no room", "no room going back"])
@pytest.mark.parametrize("held", [False, True], ids=["first", "later"])
def test_out_of_memory_moves_nothing(when, held):
    model, optimizers, runtime = setup()
    step(model, [rows(0, 8)], optimizers, ["a", "b"], runtime)
    weights, state = values(model), {k: v.clone() for k, v in optimizers["a"].state().items()}
    batches = [rows(0, 4), rows(4, 8)]
    real, calls = model.loss, []

    def loss(batch):
        calls.append(batch)
        model.poison = when if len(calls) == 1 + held else None
        return real(batch)

    model.loss = loss
    with pytest.raises(OutOfMemory, match="no room|allocate") as caught:
        step(model, batches, optimizers, ["a", "b"], runtime)
    assert caught.value.ranks == [0] and caught.value.shape == (4, 6) and len(calls) == 1 + held
    assert equal(weights, values(model)) and equal(state, optimizers["a"].state())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.loss, model.poison = real, None
    assert step(model, batches, optimizers, ["a", "b"], runtime).updated, "and the run can go on"


def test_another_error_is_no_lack_of_memory():
    model, optimizers, runtime = setup()
    model.loss = lambda batch: (_ for _ in ()).throw(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        step(model, [rows(0, 4)], optimizers, ["a"], runtime)


# ----------------------------------------------------------------------------------------- several streams in one step


def mixed(groups_by_stream, batches, shares=None, steps=1):
    model, optimizers, runtime = setup()
    for _ in range(steps):
        outcome = take_step(
            model,
            batches,
            optimizers,
            groups_by_stream,
            dict.fromkeys(optimizers, 1.0),
            runtime,
            Streams(),
            shares=shares,
            check_grads=True,
        )
    return model, optimizers, outcome


def test_a_mixed_step_routes_every_gradient():
    """Each group moves as if its stream had been alone, to the bit, and both in one step."""
    left, right = rows(0, 3, "s"), rows(3, 8, "t")
    groups_by_stream = {"s": ["a"], "t": ["b"]}
    both, optimizers, outcome = mixed(groups_by_stream, [left, right])
    for group, stream in (("a", left), ("b", right)):
        alone, single, one = mixed(groups_by_stream, [stream])
        other = "b" if group == "a" else "a"
        assert equal(values(getattr(both, group)), values(getattr(alone, group)))
        assert equal(optimizers[group].state(), single[group].state())
        assert equal(values(getattr(alone, other)), values(getattr(Toy(), other))) and not single[other].state()
        assert outcome.losses[stream.stream] == one.loss and outcome.norms[group] == one.norms[group]
    assert outcome.updated and outcome.zero_grad_params == {"a": [], "b": []}
    assert all(parameter.grad is None for parameter in both.parameters())


def test_a_mixed_step_may_be_cut_up_too():
    groups_by_stream = {"s": ["a"], "t": ["b"]}
    whole, _, outcome = mixed(groups_by_stream, [rows(0, 4, "s"), rows(4, 8, "t")], steps=3)
    parts = [rows(0, 1, "s"), rows(1, 4, "s"), rows(4, 6, "t"), rows(6, 8, "t")]
    cut, _, again = mixed(groups_by_stream, parts, steps=3)
    assert close(values(whole), values(cut)) and again.loss == pytest.approx(outcome.loss, rel=1e-6)


def gradient(batch):
    model = Toy()
    (model.loss(batch) / label_count(batch)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shares", [None, {"s": 3.0, "t": 1.0}])
def test_a_group_of_two_streams_gets_the_mean_by_share(shares):
    left, right = rows(0, 1, "s"), rows(1, 8, "t")
    weight = 0.5 if shares is None else 0.75
    first, second = gradient(left), gradient(right)
    want = {name: weight * first[name] + (1 - weight) * second[name] for name in first}
    _, _, outcome = mixed({"s": ["a", "b"], "t": ["b"]}, [left, right], shares)
    b = torch.stack([torch.linalg.vector_norm(want[name]) for name in want if name.startswith("b.")])
    a = torch.stack([torch.linalg.vector_norm(first[name]) for name in first if name.startswith("a.")])
    assert outcome.norms["b"] == pytest.approx(float(torch.linalg.vector_norm(b)), rel=1e-6)
    assert outcome.norms["a"] == pytest.approx(float(torch.linalg.vector_norm(a)), rel=1e-6)


@pytest.mark.parametrize("poison", ["first", "second"])
def test_a_stream_that_is_not_finite_stops_the_others_of_its_step(poison):
    model, optimizers, runtime = setup()
    real = model.loss
    bad = {"first": "s", "second": "t"}[poison]
    model.loss = lambda batch: real(batch) * (float("nan") if batch.stream == bad else 1)
    batches, groups_by_stream = [rows(0, 4, "s"), rows(4, 8, "t")], {"s": ["a"], "t": ["b"]}
    outcome = take_step(model, batches, optimizers, groups_by_stream, {"a": 1.0, "b": 1.0}, runtime, Streams())
    assert not outcome.updated and equal(values(model), values(Toy()))
    assert not any(optimizer.state() or optimizer._held for optimizer in optimizers.values())
