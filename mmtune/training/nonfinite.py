"""Which samples of a step are not finite: each is tried alone, with the weights that the step had."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mmtune.training import terms
from mmtune.training.split_batch import padding, singles
from mmtune.types import Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.training.distributed import Runtime
    from mmtune.training.train_plan import TrainPlan


@dataclass(frozen=True)
class Trial:
    """One sample alone."""

    id: str
    loss: float
    """Mean over what its objective counts: supervised tokens, or pairs."""
    norms: dict[str, float]
    """Gradient norm of each group that its stream trains; none in a run without backward passes."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and all(math.isfinite(norm) for norm in self.norms.values())


def run_alone(model: MultimodalModel, batch: Batch, train_plan: TrainPlan, runtime: Runtime) -> Trial:
    """Forward, and backward where the run has backward passes, of a batch of one sample; gradients are dropped."""
    objective = train_plan.objectives[batch.stream]
    counts = terms.lost(objective, terms.counts_of(objective, batch))
    weight = terms.primary(counts) or 1
    batch = batch.to(runtime.device)
    both = train_plan.gradient.name == "backward"
    with runtime.autocast(), torch.set_grad_enabled(both):
        loss = terms.total(terms.lost(objective, objective.loss(model, batch)), counts)
    try:
        if loss.requires_grad:
            loss.backward()
        norms = {}
        for name in train_plan.groups_by_stream[batch.stream] if both else ():
            train_plan.optimizers[name].accumulate(weight)
            train_plan.optimizers[name].restore_grads()
            norms[name] = float(train_plan.optimizers[name].norm())
    finally:
        for optimizer in train_plan.optimizers.values():
            optimizer.zero_grad()
    return Trial(batch.ids[0] if batch.ids else "", float(loss.detach()) / weight, norms)


def nonfinite_samples(
    model: MultimodalModel, batches: Sequence[Batch], train_plan: TrainPlan, runtime: Runtime
) -> list[str]:
    """Samples of all ranks whose loss or gradient alone is not finite. Every rank calls this.

    Where what trains is cut over ranks, its gradient is a sum over them: one rank at a time tries its samples then,
    and the others lend their parts.
    """
    ones = [one for batch in batches for one in singles(batch)]
    most = max(runtime.all_reduce([len(ones) if rank == runtime.rank else 0 for rank in range(runtime.world)]))
    found = []
    apart = runtime.world > 1 and runtime.strategy == "shard_all"
    for turn in range(runtime.world if apart else 1):
        for index in range(int(most)):
            # as many passes on every rank, for other ranks may wait for this one's modules
            mine = ones[index] if index < len(ones) and (not apart or turn == runtime.rank) else None
            batch = padding(batches[0]) if mine is None else mine
            if apart:
                streams = runtime.all_gather_strings([] if mine is None else [mine.stream])
                if not streams:
                    break
                batch = replace(batch, stream=streams[0])
            trial = run_alone(model, batch, train_plan, runtime)
            if mine is not None and not trial.finite:
                found.append(trial.id)
    return runtime.all_gather_strings(found)


def report(trials: Iterable[Trial]) -> list[str]:
    """A line for each trial."""
    return [
        f"{'finite    ' if trial.finite else 'NOT FINITE'}  {trial.id}  loss {trial.loss:.4f}  gradient "
        + (", ".join(f"{name} {norm:.4g}" for name, norm in trial.norms.items()) or "not taken")
        for trial in trials
    ]
