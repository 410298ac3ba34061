"""Controls: the same questions with some information removed, to see what an accuracy depends on.

blind        the media are left out of the conversation
other_media  each question is asked about the next clip
shuffled     the frames of each item in a random order, never the true one
reversed     the frames from last to first

Information may also be added: `EXPERTS` is the row of the same questions with the experts' findings about the media,
and `EXPERTS_BLIND` the row with the experts' findings in place of the media.

A model that scores as well blind has learnt the questions only; one that scores as well shuffled does not use time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from mmtune.errors import UsageError
from mmtune.types import MediaRef, Sample, Turn

Control = Literal["plain", "blind", "other_media", "shuffled", "reversed"]
CONTROLS: tuple[Control, ...] = get_args(Control)
EXPERTS = "experts"
EXPERTS_BLIND = "experts_blind"


def check(names: Sequence[str]) -> tuple[Control, ...]:
    """The names as controls. Raises UsageError that lists the known ones."""
    wrong = [name for name in names if name not in CONTROLS]
    if wrong:
        raise UsageError(seen=f"control {', '.join(wrong)}", expected=f"one of {', '.join(CONTROLS)}")
    return tuple(dict.fromkeys(names))  # type: ignore[arg-type]


def order(control: Control, frames: int, key: str) -> Tensor:
    """The order in which the frames of an item are shown, int64 [F].

    `key` (the origin of the item) seeds the random order, so a report can be repeated. One frame has one order.
    """
    true = torch.arange(frames)
    if control == "reversed":
        return true.flip(0)
    if control == "shuffled" and frames > 1:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % 2**63
        generator = torch.Generator().manual_seed(seed)
        while True:
            drawn = torch.randperm(frames, generator=generator)
            if not torch.equal(drawn, true):
                return drawn
    return true


def without_media(sample: Sample) -> Sample:
    """The conversation with its text only."""
    turns = (replace(turn, parts=tuple(p for p in turn.parts if not isinstance(p, MediaRef))) for turn in sample.turns)
    return replace(sample, turns=tuple(turns))


def swap(sample: Sample, others: Mapping[int, MediaRef]) -> Sample:
    """The conversation with each medium replaced; `others` goes from the id() of a reference to its replacement."""

    def turned(turn: Turn) -> Turn:
        return replace(turn, parts=tuple(others[id(p)] if isinstance(p, MediaRef) else p for p in turn.parts))

    return replace(sample, turns=tuple(turned(turn) for turn in sample.turns))


def next_of_kind(refs: Sequence[MediaRef], spare: Sequence[MediaRef] = ()) -> dict[int, MediaRef]:
    """For each reference another one of its kind: the next in the list, cyclically.

    `spare` is used where a kind occurs once; if it has none of that kind, an item of another kind is taken.

    Raises:
        UsageError: there is only one item in all.
    """
    result = {}
    for index, ref in enumerate(refs):
        ahead = [one for one in (*refs[index + 1 :], *refs[:index], *spare) if one is not ref]
        ahead.sort(key=lambda one, kind=ref.kind: one.kind != kind)
        other = next(iter(ahead), None)
        if other is None:
            raise UsageError(
                seen=f"{ref.origin} is the only item", expected="two items or more for the control other_media"
            )
        result[id(ref)] = other
    return result
