"""Questions about clips of the pocket world: objects, and the order of events.

Reads shards of clips with a JSON member that lists questions: `{"video": "0001.mp4", "questions": [{"type": "colour",
"temporal": false, "question": "...", "answer": "...", "alternatives": ["..."]}]}`. Each question is asked in a
separate conversation, the medium first. A record may hold a clip and a picture of it; its questions are about the one
that the JSON names, under `video`, `image`, `audio` or `points`. An answer is right if it equals an accepted one after
normalisation: lower case, no final punctuation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmtune.data.formats.base import Record
from mmtune.data.index import SUFFIXES
from mmtune.errors import DataError, Reason
from mmtune.eval.metrics import exact_match
from mmtune.eval.tasks.base import Question, Task, TaskConfig
from mmtune.types import Kind, MediaRef, Sample, Turn

PREFERRED: tuple[Kind, ...] = ("video", "image", "audio", "points")
"""The medium of a record whose JSON names none: the first of these that it has."""


class Config(TaskConfig):
    name: str = "pocket_qa"
    per_clip: int | None = None
    """Most questions of one clip; all when none is given."""


class PocketQA(Task):
    """One medium a record, several questions about it."""

    Config = Config
    measures = {"accuracy": "higher"}
    right = "accuracy"

    def questions(self, corpus: Iterable[Record]) -> Iterator[Question]:
        """Record by record, so that the questions about one clip follow each other.

        Raises:
            DataError: a record without a medium or without well-formed questions.
        """
        for record in corpus:
            yield from self._ask(record)

    def score(self, question: Question, answer: str) -> dict[str, float]:
        """`accuracy`: 1 for an exact match with an accepted answer, else 0."""
        return {"accuracy": float(exact_match(answer, question.answers))}

    def _ask(self, record: Record) -> Iterator[Question]:
        if "json" not in record.files:
            raise _lacking(record, "json")
        facts = _read(record)
        medium = _medium(record, facts)
        for index, entry in enumerate(facts["questions"][: self.config.per_clip]):
            yield Question(
                id=f"{record.id}#{index}",
                sample=Sample(record.id, (Turn("user", (medium, entry["question"])),)),
                answers=(entry["answer"], *entry.get("alternatives", ())),
                type=entry["type"],
                temporal=bool(entry.get("temporal", False)),
            )


def _medium(record: Record, facts: Mapping[str, Any]) -> MediaRef:
    """The medium of the questions."""
    told = {kind: facts[kind] for kind in PREFERRED if isinstance(facts.get(kind), str)}
    for kind in told or PREFERRED:
        # "jpg" and "0001.left.jpg" are members of the record "0001"; the name in the JSON tells two of a kind apart
        there = sorted(suffix for suffix in record.files if SUFFIXES.get(suffix.rpartition(".")[2]) == kind)
        there.sort(key=lambda suffix, name=told.get(kind, ""): not name.lower().endswith(f".{suffix}"))
        if there:
            return MediaRef(kind, record.files[there[0]], f"{record.id}.{there[0]}")
    raise _lacking(record, " or ".join(told or PREFERRED))


def _lacking(record: Record, what: str) -> DataError:
    return DataError(
        Reason.missing_key,
        seen=f"{record.id} has the members {', '.join(sorted(record.files)) or 'none'}",
        expected=f"one with {what}",
    )


def _read(record: Record) -> dict[str, Any]:
    """The JSON member, its questions checked."""
    try:
        facts = json.loads(record.files["json"])
        for entry in facts["questions"]:
            texts = [entry["question"], entry["answer"], entry["type"], *entry.get("alternatives", ())]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a question, answer or type that is not text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            Reason.bad_json,
            seen=f"the questions of {record.id} cannot be read: {type(error).__name__}: {error}",
            expected="questions: a list with type, question and answer",
        ) from error
    return facts
