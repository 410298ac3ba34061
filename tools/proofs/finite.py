"""A loss or gradient that is not finite, on one of two ranks, moves no weight on any; its samples are named.

The fault is tied to a sample, as a bad sample's is: so the ledger's samples can be tried again, alone, and the guilty
one fails again while the others do not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import torch

from mmtune.data import ledger as ledgers
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.objectives.distill import Distill
from mmtune.training import stepper
from mmtune.training.replay import replay

from . import _fork
from ._base import Guard, Verdict
from ._stage import STEPS, clear, fresh, order, recipe_file, train

KINDS = ("loss is NaN", "loss is infinite", "gradient is NaN", "gradient is infinite")
STEP, STREAM = 3, "pictures"


class _Spoil(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.value, None


def _poison(kind: str, victim: str, stream: str = STREAM) -> Callable[[], None]:
    """A patch: the loss of any batch that holds the victim has the fault."""
    value = math.nan if "NaN" in kind else math.inf

    def patch() -> None:
        for objective in (CrossEntropy, Distill):
            objective.loss = poisoned(objective.loss)

    def poisoned(real: Callable[..., Any]) -> Callable[..., Any]:
        def loss(self: Any, model: Any, batch: Any) -> dict[str, torch.Tensor]:
            (term, total), *others = real(self, model, batch).items()
            if victim in batch.ids and batch.stream == stream:
                print(f"poisoned on rank {_rank()}", flush=True)
                total = total + value if "loss" in kind else _Spoil.apply(total, value)
            return {term: total, **dict(others)}

        return loss

    return patch


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _observe() -> None:
    """A patch: say for each step whether it moved anything, by digests of weights and optimizers."""
    real = stepper.take_step

    def digest(model: Any, optimizers: Any) -> str:
        total = hashlib.sha256()
        states = [dict(optimizers[name].state()) for name in sorted(optimizers)]
        weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        for tensors in (weights, *states):
            for name in sorted(tensors):
                total.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
        return total.hexdigest()

    def step(model: Any, batches: Any, optimizers: Any, *rest: Any, **more: Any) -> Any:
        before = digest(model, optimizers)
        outcome = real(model, batches, optimizers, *rest, **more)
        after = digest(model, optimizers)
        print("observed " + json.dumps([before, after, outcome.updated]), flush=True)
        return outcome

    stepper.take_step = step


@functools.cache
def _victims() -> tuple[str, str]:
    """A sample of the first and one of the second row of a step: rank 0 and rank 1 will hold them."""
    recipe, out = recipe_file(), fresh("straight")
    ended = _fork.run(lambda: train(recipe, out))
    assert ended.code == 0, ended.said
    ((stream, ids),) = order(out)[STEP]
    assert stream == STREAM, stream
    clear(out)
    return ids[0], ids[-1]


def prove(short: bool) -> Verdict:
    verdict = Verdict("finite", "faults that moved nothing on any rank, and whose samples are named and fail again")
    cases = [("gradient is NaN", 1)] if short else [(kind, rank) for kind in KINDS for rank in (0, 1)]
    for kind, rank in cases:
        _one(verdict, kind, rank)
    if not short:
        _one(verdict, KINDS[0], 1, "run.gradient=two_point")
    _cut(verdict)
    return verdict


def _cut(verdict: Verdict) -> None:
    """What trains is cut over the ranks, so that its gradient is a sum over them: one sample is guilty, not two."""
    recipe, plain, out = recipe_file(), fresh("straight"), fresh("cut")
    _fork.run(lambda: train(recipe, plain))
    ids = next(ids for ((stream, ids),) in order(plain).values() if stream == "words" and len(ids) > 1)
    poison = _poison("gradient is NaN", ids[-1], "words")
    ended = _fork.ranks(lambda: train(recipe, out, "run.strategy=shard_all", patch=poison))
    fired = [one.said.count("poisoned on rank") for one in ended]
    verdict.need(sum(bool(count) for count in fired) == 1, f"shard_all: did not fire on one rank alone: {fired}")
    rows = [row for row in ledgers.read(out / "skipped.jsonl") if row["reason"] == "non_finite"]
    nonfinite_samples = {row["id"] for row in rows if row.get("fails_alone")}
    fine = _fork.all_fine(ended) and nonfinite_samples == {ids[-1]} and len({row["id"] for row in rows}) > 1
    verdict.check(fine, f"shard_all: guilty {sorted(nonfinite_samples)}, it was {ids[-1]}: {ended[0].said[-300:]}")
    clear(plain), clear(out)


def _one(verdict: Verdict, kind: str, rank: int, *changes: str) -> None:
    victim, recipe, out = _victims()[rank], recipe_file(), fresh("finite")
    where = " ".join([f"{kind} on rank {rank}", *changes])

    def patch() -> None:
        _poison(kind, victim)()
        _observe()

    ended = _fork.ranks(lambda: train(recipe, out, *changes, patch=patch))
    if not _fork.all_fine(ended):
        verdict.check(False, f"{where}: " + " | ".join(one.said[-300:] for one in ended))
        return
    # the closer look at the samples of the step comes upon the fault again, on the rank that holds them
    fired = [one.said.count("poisoned on rank") for one in ended]
    verdict.need(fired[rank] >= 1 and fired[1 - rank] == 0, f"{where}: did not fire there alone: {fired}")
    seen = [[json.loads(line[9:]) for line in one.said.splitlines() if line.startswith("observed ")] for one in ended]
    verdict.need(all(len(rows) == STEPS for rows in seen), f"{where}: {[len(rows) for rows in seen]} steps observed")
    wrong = []
    if seen[0] != seen[1]:
        wrong.append("the ranks have other weights")
    for number, (before, after, updated) in enumerate(seen[0]):
        if (number == STEP) == updated:
            wrong.append(f"step {number} says updated {updated}")
        if (before == after) == updated:
            wrong.append(f"step {number} moved {before != after} and says updated {updated}")
    rows = [row for row in ledgers.read(out / "skipped.jsonl") if row["reason"] == "non_finite"]
    named, held = {row["id"] for row in rows}, {name for _, part in order_of(out) for name in part}
    if named != held or {row["step"] for row in rows} != {STEP}:
        wrong.append(f"named {sorted(named)}, the step held {sorted(held)}")
    if [row["id"] for row in rows if row.get("fails_alone")] != [victim]:
        wrong.append(f"called guilty: {[row['id'] for row in rows if row.get('fails_alone')]}, it was {victim}")

    def again(with_fault: bool) -> dict[str, bool]:
        if with_fault:
            _poison(kind, victim)()
        return {trial.id: trial.finite for trial in replay(out, device="cpu")[1]}

    tried = _fork.run(lambda: again(True))
    if tried.value != {name: name != victim for name in held}:
        wrong.append(f"tried again: {tried.value} {tried.said[-300:]}")
    well = _fork.run(lambda: again(False))
    if well.value != dict.fromkeys(held, True):
        wrong.append(f"tried again without the fault: {well.value} {well.said[-300:]}")
    verdict.check(not wrong, f"{where}: {'; '.join(wrong)}")
    clear(out)


def order_of(out: Any) -> list[list[Any]]:
    """Samples of the spoilt step, of both ranks: the log has the rows of both, in any order."""
    from pathlib import Path

    rows = [json.loads(line) for line in Path(f"{out}.order").read_text().splitlines()]
    return [[stream, ids] for step, stream, ids in rows if step == STEP]


_STEP, _STEPPER = "mmtune.training.step", "mmtune.training.stepper"

GUARDS = (
    Guard("the loss is finite", "mmtune.training.gradients", "Tally.finite", "math.isfinite(self.loss) and ", ""),
    Guard(
        "gradients are finite",
        _STEP,
        "take_step",
        "finite = all(math.isfinite(norm) for norm in norms.values())",
        "pass",
    ),
    Guard("the samples are named", _STEPPER, "Stepper._skip", "loader.ledger.skip(", "(lambda *a, **k: None)("),
)
