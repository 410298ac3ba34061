"""Spellings of a preference between two answers, each read as a question, the answer that is preferred, and the other.

Answers: `chosen` and `rejected`, or the names of ANSWERS, each a text, a turn or turns; turns that end with the
preferred answer, and `rejected_response` or its like beside them (ms-swift); two answers and the number of the better
one (LLaVA-RLHF, PKU-SafeRLHF). The question: `conversations` or `messages`; or a text or turns in `prompt`, `question`,
`instruction` (with `input`), `query`; with `history`. Answers that begin with a turn of the user are whole
conversations, and what they have in common is the question (TRL's implicit prompt, UltraFeedback; as text in hh-rlhf).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmtune.data._json import absent
from mmtune.errors import DataError, Reason

ANSWERS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_conversations", "rejected_conversations"),
    ("preferred_output", "non_preferred_output"),
)
"""Fields of the preferred answer and of the other."""
RANKED = (("output_1", "output_2", "preference", 1), ("response_0", "response_1", "better_response_id", 0))
"""Fields of two answers and of the number of the better one, and the number that the first has."""
REJECTED = tuple(rejected for _, rejected in ANSWERS)
TURNS = ("conversations", "messages", "conversation")
QUESTIONS = ("prompt", "question", "instruction", "query", "input")
FIELDS = frozenset((*(name for names in ANSWERS for name in names), *(name for *names, _ in RANKED for name in names)))
"""Fields that say which answer is preferred."""

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_ASKING = ("human", "user", "system")
_EXPECTED = "a preferred answer and another, as `chosen` and `rejected`, and a question"

Turn = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A preference; its turns are as the record has them, texts made turns of `human` and `gpt`."""

    question: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]
    rest: dict[str, Any]
    """Fields that were not read."""


def knows(facts: Mapping[str, Any]) -> bool:
    """Whether a record has the fields of a preference."""
    return _names(facts) is not None


def read(facts: Mapping[str, Any], where: str) -> Pair:
    """The preference of a record.

    Raises:
        DataError: missing_key: no two answers, or no question. bad_json: a field of another type. empty_target: the
            answers are the same, or none is preferred.
    """
    names = _names(facts)
    if names is None:
        raise DataError(Reason.missing_key, f"{where} has {', '.join(map(str, facts))[:200] or 'nothing'}", _EXPECTED)
    chosen_name, rejected_name, used = _better(facts, names, where)
    chosen = _turns(facts[chosen_name], "gpt", f"{where}: {chosen_name}")
    rejected = _turns(facts[rejected_name], "gpt", f"{where}: {rejected_name}")
    question: list[Turn] = []
    if chosen_name not in TURNS:
        question, asking = _question(facts, where)
        used |= asking
    if all(_role(turns[0]) in _ASKING for turns in (chosen, rejected)):
        both = zip(map(_said, chosen), map(_said, rejected), strict=False)
        common = next((at for at, (a, b) in enumerate(both) if a != b), 0)
        question, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
    elif chosen_name in TURNS:
        question, chosen = chosen[:-1], chosen[-1:]
    same = [*map(_said, chosen)] == [*map(_said, rejected)]
    if same or not question:
        seen = f"{where}: {'both answers are the same' if same else 'answers without a question'}"
        raise DataError(Reason.empty_target if same else Reason.missing_key, seen, _EXPECTED)
    return Pair(question, chosen, rejected, {name: value for name, value in facts.items() if name not in used})


def _there(facts: Mapping[str, Any], name: str) -> bool:
    return not absent(facts.get(name)) and facts[name] not in ("", [], {})


def _names(facts: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The fields of the two answers, and that of the better one's number where they have no order."""
    for *names, _ in RANKED:
        if all(name in facts for name in names):
            return tuple(names)
    for names in ANSWERS:
        if all(_there(facts, name) for name in names):
            return names
    turns, rejected = ([name for name in names if _there(facts, name)] for names in (TURNS, REJECTED))
    return (turns[0], rejected[0]) if turns and rejected else None


def _better(facts: Mapping[str, Any], names: tuple[str, ...], where: str) -> tuple[str, str, set[str]]:
    """The fields of the preferred answer and of the other, and all that were read for it."""
    if len(names) == 2:
        return names[0], names[1], set(names)
    first, second, number = names
    least = next(least for *_, by, least in RANKED if by == number)
    value = facts[number]
    if isinstance(value, bool) or value not in (least, least + 1):
        seen = f"{where}: {number} is {str(value)[:40]}, and no answer is preferred"
        raise DataError(Reason.empty_target, seen, f"{least} or {least + 1}")
    return (first, second, set(names)) if value == least else (second, first, set(names))


def _question(facts: Mapping[str, Any], where: str) -> tuple[list[Turn], set[str]]:
    """The turns of the question, and the fields that they were read from; None where the answers have it."""
    name = next((name for name in (*TURNS, *QUESTIONS) if _there(facts, name)), None)
    if name is None:
        return [], set()
    value, used = facts[name], {name}
    if isinstance(value, dict) and isinstance(value.get("messages"), list):  # the files of OpenAI's fine-tuning
        value = value["messages"]
    elif name == "instruction" and isinstance(value, str) and isinstance(facts.get("input"), str):
        value, used = "\n".join(text for text in (value, facts["input"]) if text), {name, "input"}
    past: list[Turn] = []
    if _there(facts, "history"):
        past, used = _history(facts["history"], where), {*used, "history"}
    return [*past, *_turns(value, "human", f"{where}: {name}")], used


def _history(value: Any, where: str) -> list[Turn]:
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(Reason.bad_json, f"{where}: history is {str(value)[:80]!r}", "pairs of question and answer")
    return [{"from": role, "value": said} for pair in pairs for role, said in zip(("human", "gpt"), pair, strict=True)]


def _turns(value: Any, role: str, where: str) -> list[Turn]:
    """A text, a turn or a list of turns as turns; one alone is of a role."""
    if isinstance(value, str):
        spoken = _SPEAKER.split(value.strip())
        if role == "gpt" and len(spoken) > 2 and not spoken[0]:
            said = zip(spoken[1::2], spoken[2::2], strict=True)
            return [{"from": "human" if who == "Human" else "gpt", "value": text} for who, text in said]
        return [{"from": role, "value": value}]
    if isinstance(value, dict):
        return [{"from": role, "value": value.get("value", value.get("content"))}]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise DataError(Reason.bad_json, f"{where} is {str(value)[:80]!r}", "a text, or a list of turns")
    return value


def _said(turn: Turn) -> tuple[str, Any]:
    """Who says what, without the blanks around it, which no prompt writes, and without what else a record notes."""
    value = turn.get("value", turn.get("content"))
    return _role(turn), value.strip() if isinstance(value, str) else value


def _role(turn: Turn) -> str:
    return str(turn.get("from", turn.get("role"))).lower()
