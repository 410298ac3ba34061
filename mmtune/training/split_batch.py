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
    """Every sample of a batch, all its segments together, in a batch of its own, in the order of `ids`."""
    found = []
    for id, (row, first, count) in zip(batch.ids, _samples(batch).tolist(), strict=True):
        inside = (batch.segments[row] >= first) & (batch.segments[row] < first + count)
        positions = inside.nonzero()[:, 0]
        moved = torch.tensor([row, first - 1, int(positions[0]), 0])

        def own(slots: Tensor, row: int = row, first: int = first, count: int = count) -> Tensor:
            return (slots[:, 0] == row) & (slots[:, 1] >= first) & (slots[:, 1] < first + count)

        part = _chosen(batch, own, moved)
        tensors = {name: tensor[row, positions][None] for name, tensor in _by_token(batch).items()}
        tensors["segments"] = tensors["segments"] - (first - 1)
        found.append(replace(part, **tensors, samples=torch.tensor([[0, 1, count]]), ids=(id,)))
    return found


def padding(batch: Batch) -> Batch:
    """One row that holds nothing, as wide as those of a batch."""
    row = batch.tokens[:1] * 0
    return Batch(row, row + IGNORE, row, row.int(), stream=batch.stream)


def _rows(batch: Batch, first: int, last: int) -> Batch:
    samples, moved = _samples(batch), torch.tensor([first, 0, 0, 0])
    mine = (samples[:, 0] >= first) & (samples[:, 0] < last)
    part = _chosen(batch, lambda slots: (slots[:, 0] >= first) & (slots[:, 0] < last), moved)
    own = {name: tensor[first:last] for name, tensor in _by_token(batch).items()}
    ids = tuple(id for id, here in zip(batch.ids, mine.tolist(), strict=True) if here)
    return replace(part, **own, samples=samples[mine] - samples.new_tensor([first, 0, 0]), ids=ids)


def _by_token(batch: Batch) -> dict[str, Tensor]:
    """The tensors [B,T] of a batch."""
    named = {name: getattr(batch, name) for name in ("tokens", "labels", "positions", "segments", "weights")}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _samples(batch: Batch) -> Tensor:
    """int64 [n,3] = row, first segment, number of segments of each sample."""
    if batch.samples is not None:
        return batch.samples
    several = batch.segments.amax(1).tolist()
    listed = [(row, segment, 1) for row, count in enumerate(several) for segment in range(1, count + 1)]
    return torch.tensor(listed, dtype=torch.int64, device=batch.tokens.device).reshape(-1, 3)


def _chosen(batch: Batch, choose: Callable[[Tensor], Tensor], moved: Tensor) -> Batch:
    """The batch with those slots only that are chosen, and their media; branches without any have no entry.

    Args:
        moved: taken away from each slot, [4].
    """
    media, frame_mask, slots, items = {}, {}, {}, {}
    for name, all_slots in batch.slots.items():
        chosen = choose(all_slots)
        if not bool(chosen.any()):
            continue
        slots[name] = all_slots[chosen] - moved.to(all_slots.device)
        kept, own = chosen, None
        if name in batch.items:
            kept, own = batch.items[name][chosen].unique(return_inverse=True)
        media[name], frame_mask[name] = batch.media[name][kept], batch.frame_mask[name][kept]
        if own is not None and len(own) > len(kept):
            items[name] = own
    return replace(batch, media=media, frame_mask=frame_mask, slots=slots, items=items)
