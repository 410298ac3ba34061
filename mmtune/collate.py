"""Packed examples to a `Batch`: padding, positions that begin from zero in each segment, slots by row and segment.

A sequence of an example is a segment. An item that several of its sequences show is in the batch once.

No blank media are made up here. A batch without an item of some branch has no entry for it, and the model sees to it
that the branch takes part all the same (`MultimodalModel.connect`). A rank that has no row in a micro-step gets one row
of padding: one token, segment 0, no label. Weights of labels are there only where some are not 1.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from mmtune.errors import ShapeError
from mmtune.types import IGNORE, Batch, Example

MULTIPLE = 8
"""Packed rows are padded to a multiple of this many tokens."""


def collate(
    rows: Sequence[Sequence[Example]],
    pad: int = 0,
    stream: str = "",
    width: int | None = None,
    multiple: int = MULTIPLE,
) -> Batch:
    """Rows of examples to a batch.

    Args:
        pad: token written at padding.
        width: T; the longest row, brought up to a multiple of `multiple`, when not given.

    Returns:
        Items of a branch in the order of their rows, segments and slots; padded in F with zeros, `frames` saying which
        are real.

    Raises:
        ShapeError: prepared items of one branch that differ in more than their number of frames.
    """
    lengths = [sum(len(example) for example in row) for row in rows]
    longest = max([1, *lengths])
    width = width or -(-longest // multiple) * multiple
    if longest > width:
        raise ShapeError(f"a row of {longest} tokens", f"at most {width}")
    shape = (max(1, len(rows)), width)
    tokens = torch.full(shape, pad, dtype=torch.int64)
    labels = torch.full(shape, IGNORE, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    segments = torch.zeros(shape, dtype=torch.int32)
    weighted = any(example.weights is not None for examples in rows for example in examples)
    weights = torch.zeros(shape) if weighted else None
    samples: list[tuple[int, int, int]] = []
    placed = _Placed()
    for row, examples in enumerate(rows):
        start, segment = 0, 1
        for example in examples:
            end = start + len(example)
            tokens[row, start:end] = example.tokens
            labels[row, start:end] = example.labels
            if weights is not None:
                own = example.weights
                weights[row, start:end] = (example.labels != IGNORE).float() if own is None else own
            sequences = example.sequences or (len(example),)
            samples.append((row, segment, len(sequences)))
            placed.add(example, row, segment, start)
            for length in sequences:
                positions[row, start : start + length] = torch.arange(length)
                segments[row, start : start + length] = segment
                start, segment = start + length, segment + 1
    media, frames = {}, {}
    for branch, tensors in placed.media.items():
        media[branch], frames[branch] = _stack(branch, tensors)
    where = {branch: torch.tensor(lines, dtype=torch.int64) for branch, lines in placed.slots.items()}
    ids = tuple(example.id for row in rows for example in row)
    spans = torch.tensor(samples, dtype=torch.int64).reshape(-1, 3)
    return Batch(
        tokens, labels, positions, segments, media, frames, where, stream, ids, weights, spans, placed.shared()
    )


class _Placed:
    """The media of a batch by branch, and where they stand."""

    def __init__(self) -> None:
        self.media: dict[str, list[Tensor]] = {}
        self.slots: dict[str, list[tuple[int, int, int, int]]] = {}
        self._items: dict[str, list[int]] = {}
        """Item of each slot."""

    def add(self, example: Example, row: int, segment: int, start: int) -> None:
        """The slots of an example whose first token is at `start` of a row, in a segment."""
        known: dict[tuple[str, int], int] = {}
        ends = list(itertools.accumulate(example.sequences))
        for slot in example.slots:
            media = self.media.setdefault(slot.branch, [])
            if (slot.branch, slot.item) not in known:
                known[slot.branch, slot.item] = len(media)
                media.append(example.media[slot.branch][slot.item])
            own = segment + bisect.bisect_right(ends, slot.start) if ends else segment
            self.slots.setdefault(slot.branch, []).append((row, own, start + slot.start, slot.length))
            self._items.setdefault(slot.branch, []).append(known[slot.branch, slot.item])

    def shared(self) -> dict[str, Tensor]:
        """The item of each slot, for branches of which an item has several slots."""
        items = {branch: held for branch, held in self._items.items() if len(held) > len(self.media[branch])}
        return {branch: torch.tensor(held, dtype=torch.int64) for branch, held in items.items()}


def _stack(branch: str, items: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Items [F,...] with any F to [M,F,...] and bool [M,F]."""
    kinds = {(tuple(item.shape[1:]), item.dtype) for item in items}
    if len(kinds) > 1:
        shown = ", ".join(sorted(f"[F,{','.join(map(str, shape))}] {dtype}" for shape, dtype in kinds))
        raise ShapeError(f"items of branch {branch}: {shown}", "one shape and dtype after the frames")
    counts = torch.tensor([item.shape[0] for item in items])
    most = int(counts.max())
    if all(item.shape[0] == most for item in items):
        return torch.stack(items), torch.ones(len(items), most, dtype=torch.bool)
    media = items[0].new_zeros((len(items), most, *items[0].shape[1:]))
    for index, item in enumerate(items):
        media[index, : item.shape[0]] = item
    return media, torch.arange(most)[None, :] < counts[:, None]
