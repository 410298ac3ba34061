"""Preferences between two answers as the format `preference` reads them, turns in the roles that it knows."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from mmtune.data.convert import turns
from mmtune.data.convert.base import Row
from mmtune.data.formats import _pairs


def knows(row: Row) -> bool:
    """Whether a record has two answers of which one is preferred."""
    return _pairs.knows(_unpacked(row))


def pair(row: Row) -> Row:
    """Turns of the question, and of each answer after it. Raises DataError."""
    found = _pairs.read(_unpacked(row), "the record")
    asked = turns.conversation({**found.rest, "conversations": found.question})
    answers = {"chosen": found.chosen, "rejected": found.rejected}
    return {
        **asked,
        **{name: turns.conversation({"messages": said})["conversations"] for name, said in answers.items()},
    }


def _unpacked(row: Row) -> Row:
    """A record whose turns are lists; with the facts that RLHF-V has as JSON in the field `text`."""
    facts: Any = row.get("text")
    if isinstance(facts, str) and facts.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            facts = json.loads(facts)
    if isinstance(facts, dict) and _pairs.knows(facts):
        row = {**{name: value for name, value in row.items() if name != "text"}, **facts}
    named = _pairs.FIELDS.union(_pairs.TURNS, _pairs.QUESTIONS)
    return {name: turns.unpacked(value) if name in named else value for name, value in row.items()}
