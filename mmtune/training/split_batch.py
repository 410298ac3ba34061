"""Parts of a batch: some of its rows, one sample alone, a row of padding. What is in a part is not changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmtune.types import IGNORE, Batch


def split_batch(batch: Batch, pieces: int) -> list[Batch]:
    """A batch in `pieces` batches of about as many rows each; padding where there are fewer rows than pieces.

    As many pieces on every rank, whatever rows it has: other ranks wait for each of them.
    """
    if pieces == 1:
        return [batch]
    rows = batch.tokens.shape[0]
    ends = [rows * piece // pieces for piece in range(pieces + 1)]
    return [_rows(batch, first, last) if last > first else padding(batch) for first, last in itertools.pairwise(ends)]


def singles(batch: Batch) -> list[Batch]:
    """Every sample of a batch in a batch of its own, in the order of `ids`."""
    found = []
    for row, several in enumerate(_counts(batch)):
        for segment in range(1, several + 1):
            positions = (batch.segments[row] == segment).nonzero()[:, 0]
            first = int(positions[0])
            part = _chosen(batch, lambda slots, r=row, s=segment: (slots[:, 0] == r) & (slots[:, 1] == s))
            slots = {}
            for name, kept in part.slots.items():
                slots[name] = torch.stack([kept[:, 0] * 0, kept[:, 1] * 0 + 1, kept[:, 2] - first, kept[:, 3]], 1)
            own = {name: tensor[row, positions][None] for name, tensor in _by_token(batch).items()}
            own["segments"] = torch.ones_like(own["segments"])
            found.append(replace(part, **own, slots=slots, ids=(batch.ids[len(found)],)))
    return found


def padding(batch: Batch) -> Batch:
    """One row that holds nothing, as wide as those of a batch."""
    row = batch.tokens[:1] * 0
    return Batch(row, row + IGNORE, row, row.int(), stream=batch.stream)


def _rows(batch: Batch, first: int, last: int) -> Batch:
    counts = _counts(batch)
    part = _chosen(batch, lambda slots: (slots[:, 0] >= first) & (slots[:, 0] < last))
    moved = {name: slots - torch.tensor([first, 0, 0, 0], device=slots.device) for name, slots in part.slots.items()}
    own = {name: tensor[first:last] for name, tensor in _by_token(batch).items()}
    return replace(part, **own, slots=moved, ids=batch.ids[sum(counts[:first]) : sum(counts[:last])])


def _by_token(batch: Batch) -> dict[str, Tensor]:
    """The tensors [B,T] of a batch."""
    named = {name: getattr(batch, name) for name in ("tokens", "labels", "positions", "segments", "weights")}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _counts(batch: Batch) -> list[int]:
    """Samples in each row."""
    return batch.segments.amax(1).tolist()


def _chosen(batch: Batch, choose: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with those media items only whose slots are chosen; branches without any have no entry."""
    keep: dict[str, Tensor] = {name: choose(slots) for name, slots in batch.slots.items()}
    kept = {name: chosen for name, chosen in keep.items() if bool(chosen.any())}
    return replace(
        batch,
        media={name: batch.media[name][chosen] for name, chosen in kept.items()},
        frame_mask={name: batch.frame_mask[name][chosen] for name, chosen in kept.items()},
        slots={name: batch.slots[name][chosen] for name, chosen in kept.items()},
    )
