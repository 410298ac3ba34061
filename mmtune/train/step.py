"""One step: gradients of the stream's batches, and an update of the groups that the stream trains, or of nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import Parameter

from mmtune.train.optim import GroupOptimizer
from mmtune.types import Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.train.distributed import Runtime
    from mmtune.tuners.base import Attendant


@dataclass(frozen=True)
class Outcome:
    """What a step did, over all ranks."""

    loss: float
    """Mean over supervised tokens."""
    supervised: int
    tokens: int
    """Places that are not padding."""
    samples: int
    norms: dict[str, float]
    """Gradient norm of each group of this stream, before clipping."""
    updated: bool
    """False when something was not finite and no weight moved."""


def take_step(
    model: MultimodalModel,
    batches: Sequence[Batch],
    optimizers: Mapping[str, GroupOptimizer],
    active: Sequence[str],
    lr_factor: float,
    runtime: Runtime,
    attendants: Sequence[Attendant] = (),
) -> Outcome:
    """Forward, backward, and one update of the active groups.

    The loss is the sum over supervised tokens divided by their number over all micro-steps and ranks, so the result
    does not depend on how the batch is cut up. Gradients of all groups are dropped at the end.

    Args:
        batches: the micro-steps of this rank.
        active: groups that this stream trains.
        lr_factor: what the learning rates are multiplied by in this step.
        attendants: of tuners whose parameters this stream trains.
    """
    total, count, tokens, samples = 0.0, 0, 0, 0
    for batch in batches:
        batch = batch.to(runtime.device)
        with runtime.autocast():
            loss, supervised = model.loss(batch)
        value = float(loss.detach())
        total += value
        count += int(supervised)
        tokens += int((batch.segments > 0).sum())
        samples += len(batch.ids)
        if math.isfinite(value) and loss.requires_grad:
            loss.backward()
    total, count, tokens, samples = runtime.total([total, count, tokens, samples])
    norms, finite = {}, math.isfinite(total) and count > 0
    if finite:
        runtime.sum_gradients(_parameters(optimizers, active))
        for attendant in attendants:
            if (penalty := attendant.penalty()) is not None:
                (penalty * count).backward()  # behind the sum, so that it counts once, whatever the number of ranks
        # every rank holds the same sums by now, so every rank comes to the same decision
        norms = {name: optimizers[name].norm(divide=count) for name in active}
        finite = all(math.isfinite(float(norm)) for norm in norms.values())
    if finite:
        for name in active:
            optimizers[name].step(norms[name], lr_factor)
        for attendant in attendants:
            attendant.updated()
    for optimizer in optimizers.values():
        optimizer.drop()
    return Outcome(
        loss=total / count if count else math.nan,
        supervised=int(count),
        tokens=int(tokens),
        samples=int(samples),
        norms={name: float(norm) for name, norm in norms.items()},
        updated=finite,
    )


def _parameters(optimizers: Mapping[str, GroupOptimizer], active: Sequence[str]) -> list[Parameter]:
    return [parameter for name in active for parameter in optimizers[name].parameters]
