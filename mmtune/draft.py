"""An example while it is written: tokens, what each counts in the loss, slots, media; one conversation or several."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmtune.llm.base import Before
from mmtune.types import IGNORE, Example, Sample, Slot


@dataclass
class Draft:
    """One conversation, or several in a row."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    """What each token counts in the loss."""
    slots: list[Slot] = field(default_factory=list)
    media: dict[str, list[Tensor]] = field(default_factory=dict)
    after: Before = "start"
    sequences: list[int] = field(default_factory=list)
    """Lengths of the conversations, where there are several."""

    def write(self, ids: list[int], weight: float = 0.0) -> None:
        self.tokens += ids
        self.weights += [weight] * len(ids)

    def cut(self, length: int) -> bool:
        """Keep the first `length` tokens; false, and nothing is changed, where that goes through a slot.

        Media whose tokens are all after go with them; media without tokens stay.
        """
        if any(slot.start < length < slot.start + slot.length for slot in self.slots):
            return False
        kept = [slot for slot in self.slots if not slot.length or slot.start < length]
        self.slots = [replace(slot, start=min(slot.start, length)) for slot in kept]
        left = Counter(slot.branch for slot in kept)  # items of a branch stand in reading order, so the last ones go
        self.media = {branch: items[: left[branch]] for branch, items in self.media.items() if left[branch]}
        del self.tokens[length:], self.weights[length:]
        return True

    def join(self, other: Draft) -> None:
        """Append another conversation; an item that is here already is not stored twice."""
        start, last = len(self.tokens), len(other.tokens) - 1
        self.sequences = [*(self.sequences or [start]), len(other.tokens)]
        places = {branch: self._places(branch, items) for branch, items in other.media.items()}
        for slot in other.slots:
            inside = slot.start if slot.length else min(slot.start, last)  # a slot without tokens belongs to it too
            self.slots.append(replace(slot, start=start + inside, item=places[slot.branch][slot.item]))
        self.tokens += other.tokens
        self.weights += [0.0, *other.weights[1:]]  # the conversation before does not say how this one begins

    def _places(self, branch: str, items: list[Tensor]) -> list[int]:
        """Where the items of a further conversation are among those held, which they join if need be."""
        held = self.media.setdefault(branch, [])
        free = list(enumerate(held))
        places = []
        for item in items:
            known = next((pair for pair in free if pair[1] is item), None)
            if known is None:
                places.append(len(held))
                held.append(item)
            else:
                free.remove(known)
                places.append(known[0])
        return places

    @property
    def learns(self) -> bool:
        """Whether there is a token to learn in each conversation."""
        weights = iter(self.weights)
        lengths = self.sequences or [len(self.weights)]
        return all(any(list(itertools.islice(weights, length))) for length in lengths)

    def example(self, sample: Sample, train_on: bool = True) -> Example:
        """The example, with labels shifted once, here; without labels if `train_on` is false."""
        tokens = torch.tensor(self.tokens, dtype=torch.int64)
        labels, weights = torch.full_like(tokens, IGNORE), None
        if train_on:
            counts = torch.tensor(self.weights, dtype=torch.float32)
            labels[:-1] = torch.where(counts[1:] > 0, tokens[1:], IGNORE)
            if not {0.0, 1.0}.issuperset(self.weights):
                weights = torch.cat([counts[1:], counts.new_zeros(1)])
        slots, sequences = tuple(self.slots), tuple(self.sequences)
        stream = sample.stream
        return Example(sample.id, tokens, labels, slots, self.media, stream, weights, sequences=sequences)
