"""Where the gradients of a step come from: a backward pass, or the difference between two points (zeroth order).

Either way they are sums over the micro-steps of one stream on all ranks, which the step divides, clips and looks at.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mmtune import random_state
from mmtune.objectives.base import Objective
from mmtune.params import GradientSection, Named
from mmtune.sharded import like
from mmtune.training import terms
from mmtune.types import IGNORE, Batch

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.training.distributed import Runtime


class OutOfMemory(Exception):
    """Some ranks had no room for a forward or backward pass. Gradients are dropped and no weight moved, on any rank."""

    def __init__(self, ranks: Sequence[int], shape: tuple[int, int], said: str) -> None:
        super().__init__(said)
        self.ranks, self.shape, self.said = list(ranks), shape, said


@dataclass(frozen=True)
class Tally:
    """Sums over the micro-steps of one stream, on all ranks."""

    sums: dict[str, float]
    counts: dict[str, float]
    measures: dict[str, float]
    """Means of what the objective measures."""
    supervised: int
    tokens: int
    samples: int
    reached: frozenset[int] = frozenset()
    """Ids of the parameters that got a gradient on this rank, be it of zeros."""

    @property
    def loss(self) -> float:
        return terms.total(self.sums, self.counts)

    @property
    def weight(self) -> float:
        return terms.primary(self.counts)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and self.weight > 0


class Gradients(Protocol):
    """Leaves in `.grad` of parameters what all micro-steps of a stream, on all ranks, add up to."""

    def __call__(
        self, model: MultimodalModel, batches: Sequence[Batch], objective: Objective, named: Named, runtime: Runtime
    ) -> Tally:
        """Every rank calls this.

        Args:
            batches: the micro-steps of this rank, of one stream.
            named: what the stream trains, in the same order on all ranks.

        Raises:
            OutOfMemory: on every rank, when any of them had no room.
            ConfigError: records with weights, and an objective that does not read them.
        """


def gradients_of(settings: GradientSection, seed: int, step: int) -> Gradients:
    """The gradients of one step, as a recipe wants them."""
    return backward if settings.name == "backward" else TwoPoint(settings.epsilon, settings.directions, seed, step)


def backward(
    model: MultimodalModel, batches: Sequence[Batch], objective: Objective, named: Named, runtime: Runtime
) -> Tally:
    """By the backward pass of each micro-step, see `Gradients`."""
    tally = _passes(model, batches, objective, runtime)
    if tally.finite:
        # before the sum, which gives every parameter a gradient
        tally = replace(tally, reached=frozenset(id(p) for _, p in named if p.grad is not None))
        runtime.sum_gradients(p for _, p in named)
    return tally


@dataclass(frozen=True)
class TwoPoint:
    """By the slope of the loss along random directions (Malladi et al. 2023, MeZO; Spall 1992), see `Gradients`.

    Two forward passes for each direction, no backward pass and nothing kept for one. The weights are moved by `epsilon`
    times a normal direction to both sides; the difference of the losses over the distance, times the direction, is the
    estimate: right on average, and longer than the gradient by about the square root of how many numbers train. What
    the loss does not depend on gets an estimate all the same.

    A direction follows from (seed, step), stream and name of a parameter, so it is the same on all ranks, and only
    losses are sent between them. Both passes draw the same random numbers. Weights come back from a copy, to the bit.
    """

    epsilon: float
    directions: int
    seed: int
    step: int

    @torch.no_grad()
    def __call__(
        self, model: MultimodalModel, batches: Sequence[Batch], objective: Objective, named: Named, runtime: Runtime
    ) -> Tally:
        copies = [parameter.detach().clone() for _, parameter in named]
        tallies: list[Tally] = []
        for direction in range(self.directions):
            noise = [self._noise(f"{batches[0].stream} {direction} {name}", parameter) for name, parameter in named]
            with _restored(named, copies):
                _move(named, copies, noise, self.epsilon)
                with random_state.kept([runtime.device] if runtime.device.type == "cuda" else []):
                    above = _passes(model, batches, objective, runtime)
                _move(named, copies, noise, -self.epsilon)
                below = _passes(model, batches, objective, runtime)
            tallies += [above, below]
            slope = (above.loss - below.loss) / (2 * self.epsilon * self.directions)
            for (_, parameter), one in zip(named, noise, strict=True):
                one.mul_(slope)
                parameter.grad = one if parameter.grad is None else parameter.grad.add_(one)
        sums, measures = _mean([one.sums for one in tallies]), _mean([one.measures for one in tallies])
        return replace(tallies[0], sums=sums, measures=measures, reached=frozenset(id(p) for _, p in named))

    def _noise(self, what: str, parameter: Tensor) -> Tensor:
        """A normal direction for a parameter; of one that is cut, this rank's part."""
        digest = hashlib.sha256(f"mmtune two_point {self.seed} {self.step} {what}".encode()).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
        shape, dtype, device = parameter.shape, parameter.dtype, parameter.device
        return like(torch.randn(shape, generator=generator, dtype=dtype, device=device), parameter)


def _mean(several: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in several) / len(several) for name in several[0]}


def _move(named: Named, copies: Sequence[Tensor], noise: Sequence[Tensor], by: float) -> None:
    for (_, parameter), copy, one in zip(named, copies, noise, strict=True):
        parameter.copy_(copy).add_(one, alpha=by)


@contextmanager
def _restored(named: Named, copies: Sequence[Tensor]) -> Iterator[None]:
    """Whatever happens within, the parameters are their copies afterwards."""
    try:
        yield
    finally:
        for (_, parameter), copy in zip(named, copies, strict=True):
            parameter.copy_(copy)


def _passes(model: MultimodalModel, batches: Sequence[Batch], objective: Objective, runtime: Runtime) -> Tally:
    """Forward, and backward where gradients are enabled, of one stream's micro-steps; gradients are summed up where
    they fall. Raises OutOfMemory on every rank."""
    counted = _count(objective, batches, runtime)  # of all, before any: a term is scaled by them on its way back
    counts = terms.lost(objective, counted)
    sums, supervised, tokens, samples, full = dict.fromkeys(counted, 0.0), 0, 0, 0, ""
    for batch in batches:
        learned = int((batch.labels != IGNORE).sum())
        try:
            batch = batch.to(runtime.device)
            with runtime.autocast():
                found = objective.loss(model, batch)
                loss = terms.total(terms.lost(objective, found), counts)
            for term, value in found.items():
                sums[term] += float(value.detach())
            if loss.requires_grad:
                loss.backward()  # also of a loss that is not finite: other ranks may wait for this one's modules
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            full = f"{type(error).__name__}: {error}"  # the words only: the error holds every tensor of the pass
            break
        supervised += learned
        tokens += int((batch.segments > 0).sum())
        samples += len(batch.ids)
    out = [float(bool(full) and rank == runtime.rank) for rank in range(runtime.world)]
    supervised, tokens, samples, *rest = runtime.all_reduce([supervised, tokens, samples, *sums.values(), *out])
    if any(out := rest[len(sums) :]):
        rows, length = max(tuple(batch.tokens.shape) for batch in batches)
        raise OutOfMemory([rank for rank, flag in enumerate(out) if flag], (rows, length), full)
    sums = dict(zip(sums, rest[: len(sums)], strict=True))
    measures = terms.measured(objective, sums, counted)
    return Tally(terms.lost(objective, sums), counts, measures, int(supervised), int(tokens), int(samples))


def _count(objective: Objective, batches: Sequence[Batch], runtime: Runtime) -> dict[str, float]:
    """What the micro-steps of all ranks count, by term."""
    each = [terms.counts_of(objective, batch) for batch in batches]
    found = runtime.all_reduce([sum(float(counts[term]) for counts in each) for term in each[0]])
    return dict(zip(each[0], found, strict=True))


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left; the processor's allocator has no class of its own for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("allocate memory" in said or "out of memory" in said)
