"""Pairs of answers to one question, of which one is preferred: for objectives that compare.

Spellings are as `_pairs` says. Question and media are read as the format `llava` reads a conversation. The preferred
answer ends the sample's turns, the other one ends its alternative; what both have before is one, media too, and carries
no loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from mmtune.data.formats import _fields, _pairs, _placeholders, llava
from mmtune.data.formats._pairs import Pair
from mmtune.data.formats.base import Record
from mmtune.data.formats.llava import Llava, Named
from mmtune.errors import DataError, Reason
from mmtune.types import Kind, Sample, Turn


class Config(llava.Config):
    name: str = "preference"


class Preference(Llava):
    """One pair a record."""

    Config = Config
    sequences = 2
    refused: ClassVar[Mapping[str, str]] = {
        name: why for name, why in _fields.RECORD.items() if name not in _pairs.FIELDS
    }

    def conversation(self, record: Record, facts: dict[str, Any]) -> Sample:
        """The pair of facts that are read already. Raises DataError as `Llava` and `_pairs.read` do."""
        pair = _pairs.read(facts, record.id)
        sample = super().conversation(record, {**pair.rest, "conversations": [*pair.question, *pair.chosen]})
        place = len(sample.turns) - len(pair.chosen)
        question = tuple(replace(turn, weight=0.0) for turn in sample.turns[:place])
        other = (*question, *self._rejected(record, pair))
        return replace(sample, turns=(*question, *sample.turns[place:]), alternatives=(other,))

    def _rejected(self, record: Record, pair: Pair) -> list[Turn]:
        """The turns of the answer that is not preferred; they are text."""
        weight, names = _fields.weight(pair.rest, record.id), dict[Kind, list[Named]]()
        said = [
            self._turn(self.config.without(turn), f"{record.id}: rejected turn {number}", weight, names)
            for number, turn in enumerate(pair.rejected)
        ]
        if names:
            seen = f"{record.id}: {', '.join(names)} in the rejected answer"
            raise DataError(Reason.placeholder_mismatch, seen, "media in the question, which both answers share")
        return [Turn(role, tuple(parts), one) for role, parts, one in _placeholders.settle(said, {}, record.id)]
