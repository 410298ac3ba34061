"""One step: gradients of each stream's batches, and an update of the groups that those streams train, or of nothing.

A stream's loss reaches its own groups only. Where a step holds several streams, each one's gradients are taken up by
its groups before the next one's are made, so nothing leaks from one to the other, and every group still moves once.
`mmtune.training.gradients` has the estimators of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.objectives.base import Objective
from mmtune.training import terms
from mmtune.training.gradients import Gradients, Tally, backward
from mmtune.training.optim import GroupOptimizer
from mmtune.types import Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.training.distributed import Runtime
    from mmtune.tuners.base import StepCallback


@dataclass(frozen=True)
class Outcome:
    """What a step did, over all ranks."""

    loss: float
    """Mean over supervised tokens, those of all streams together, each counting what its turn weighs."""
    supervised: int
    """Tokens that are learned."""
    tokens: int
    """Tokens that are not padding."""
    samples: int
    norms: dict[str, float]
    """Gradient norm of each group of these streams, before clipping."""
    updated: bool
    """False when something was not finite and no weight moved."""
    losses: dict[str, float] = field(default_factory=dict)
    """Mean over supervised tokens, by stream."""
    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    """Stream to the mean of each term of its loss, for the streams whose loss has several."""
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Stream to the mean of what its objective measures."""
    zero_grad_params: dict[str, list[str]] = field(default_factory=dict)
    """Group to the parameters that got no gradient, or one of zeros; filled where it was asked for."""
    unused_groups: frozenset[str] = frozenset()
    """Groups in whose formula no parameter stands: none has a gradient, not even of zeros, on any rank. Filled where it
    was asked for."""
    weight: float = 0.0
    """What the supervised tokens count together: their number, where no turn has a weight of its own."""

    def loss_values(self) -> dict[str, float]:
        """What is logged: loss/STREAM, loss/STREAM/TERM of a loss of several terms, and STREAM/MEASURE."""
        values = {f"loss/{stream}": loss for stream, loss in self.losses.items()}
        values |= {f"loss/{s}/{term}": mean for s, means in self.terms.items() for term, mean in means.items()}
        return values | {f"{s}/{name}": mean for s, means in self.measures.items() for name, mean in means.items()}


def take_step(
    model: MultimodalModel,
    batches: Sequence[Batch],
    optimizers: Mapping[str, GroupOptimizer],
    groups_by_stream: Mapping[str, Sequence[str]],
    lr_multipliers: Mapping[str, float],
    runtime: Runtime,
    objectives: Mapping[str, Objective],
    step_callbacks: Sequence[StepCallback] = (),
    shares: Mapping[str, float] | None = None,
    check_grads: bool = False,
    gradients: Gradients = backward,
) -> Outcome:
    """Forward, backward, and one update of the groups that the batches' streams train.

    A stream's loss is the sum over supervised tokens, each times its weight, divided by the sum of weights over all
    micro-steps and ranks, so the result does not depend on how its batch is cut up. A group that several streams of
    this step train gets the mean of their losses, weighted by share; others get the loss of their stream as it is.
    Gradients are dropped at the end.

    Args:
        batches: the micro-steps of this rank; those of a stream stand together, streams in the same order on all ranks.
        groups_by_stream: stream to the groups that it trains, for the streams of this step at least.
        lr_multipliers: group to what its learning rate is multiplied by.
        objectives: stream to what is asked of the model.
        step_callbacks: of tuners whose parameters these streams train.
        shares: stream to its weight in groups that it has in common with others; 1 where there is none.
        check_grads: say which parameters got no gradient; costs a look at every tensor.
        gradients: where they come from.

    Raises:
        OutOfMemory: on every rank, when any of them had no room.
        ConfigError: records with weights, and an objective that does not read them.
    """
    shares = shares or {}
    tallies: dict[str, Tally] = {}
    streams = list(dict.fromkeys(batch.stream for batch in batches))
    trained_groups = list(dict.fromkeys(name for stream in streams for name in groups_by_stream[stream]))
    reached: set[str] = set()
    try:
        for stream in streams:
            mine = [batch for batch in batches if batch.stream == stream]
            named = [pair for name in groups_by_stream[stream] for pair in optimizers[name].named]
            tally = tallies[stream] = gradients(model, mine, objectives[stream], named, runtime)
            if not tally.finite:
                break
            reached.update(name for name in groups_by_stream[stream] if optimizers[name].holds(tally.reached))
            for name in groups_by_stream[stream]:
                rivals = sum(shares.get(other, 1.0) for other in streams if name in groups_by_stream[other])
                optimizers[name].accumulate(tally.weight * rivals / shares.get(stream, 1.0))
            _zero_grad(optimizers)
        finite = all(tally.finite for tally in tallies.values())
        norms: dict[str, float] = {}
        zero_grad_params: dict[str, list[str]] = {}
        unused_groups: frozenset[str] = frozenset()
        if finite:
            for name in trained_groups:
                optimizers[name].restore_grads()
            if check_grads:
                zero_grad_params = {name: optimizers[name].zero_grad_params() for name in trained_groups}
                anywhere = runtime.all_reduce([name in reached for name in trained_groups])
                unused_groups = frozenset(n for n, ranks in zip(trained_groups, anywhere, strict=True) if not ranks)
            for callback in step_callbacks:
                if (penalty := callback.penalty()) is not None:
                    penalty.backward()  # after the sum, so that it counts once, whatever the number of ranks
            # every rank holds the same sums by now, so every rank comes to the same decision
            exact = {name: optimizers[name].norm() for name in trained_groups}
            norms = {name: float(norm) for name, norm in exact.items()}
            finite = all(math.isfinite(norm) for norm in norms.values())
        if finite:
            for name in trained_groups:
                optimizers[name].step(exact[name], lr_multipliers[name])
            for callback in step_callbacks:
                callback.updated()
    finally:
        _zero_grad(optimizers, held=True)
    return _outcome(tallies, norms, finite, zero_grad_params, unused_groups)


def _outcome(
    tallies: Mapping[str, Tally],
    norms: dict[str, float],
    updated: bool,
    zero_grad_params: dict[str, list[str]],
    unused_groups: frozenset[str],
) -> Outcome:
    """The sums of all streams in one."""
    weight = sum(tally.weight for tally in tallies.values())
    return Outcome(
        loss=sum(tally.loss for tally in tallies.values()) / weight if weight else math.nan,
        supervised=sum(tally.supervised for tally in tallies.values()),
        tokens=sum(tally.tokens for tally in tallies.values()),
        samples=sum(tally.samples for tally in tallies.values()),
        norms=norms,
        updated=updated,
        losses={name: tally.loss / tally.weight if tally.weight else math.nan for name, tally in tallies.items()},
        terms={name: means for name, tally in tallies.items() if (means := terms.means(tally.sums, tally.counts))},
        measures={name: tally.measures for name, tally in tallies.items()},
        zero_grad_params=zero_grad_params,
        unused_groups=unused_groups,
        weight=weight,
    )


def _zero_grad(optimizers: Mapping[str, GroupOptimizer], held: bool = False) -> None:
    for optimizer in optimizers.values():
        optimizer.zero_grad(held)
