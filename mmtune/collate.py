"""Packed examples to a `Batch`: padding, positions that begin from zero in each segment, slots by row and segment.

No blank media are made up here. A batch without an item of some branch has no entry for it, and the model sees to it
that the branch takes part all the same (`MultimodalModel.connect`). A rank that has no row in a micro-step gets one row
of padding: one token, segment 0, no label. Weights of labels are there only where some are not 1.
"""

from __future__ import annotations

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
    items: dict[str, list[Tensor]] = {}
    slots: dict[str, list[tuple[int, int, int, int]]] = {}
    for row, examples in enumerate(rows):
        start = 0
        for segment, example in enumerate(examples, start=1):
            end = start + len(example)
            tokens[row, start:end] = example.tokens
            labels[row, start:end] = example.labels
            positions[row, start:end] = torch.arange(len(example))
            segments[row, start:end] = segment
            if weights is not None:
                own = example.weights
                weights[row, start:end] = (example.labels != IGNORE).float() if own is None else own
            for slot in example.slots:
                items.setdefault(slot.branch, []).append(example.media[slot.branch][slot.item])
                slots.setdefault(slot.branch, []).append((row, segment, start + slot.start, slot.length))
            start = end
    media, frames = {}, {}
    for branch, tensors in items.items():
        media[branch], frames[branch] = _stack(branch, tensors)
    where = {branch: torch.tensor(rows, dtype=torch.int64) for branch, rows in slots.items()}
    ids = tuple(example.id for row in rows for example in row)
    return Batch(tokens, labels, positions, segments, media, frames, where, stream, ids, weights)


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
