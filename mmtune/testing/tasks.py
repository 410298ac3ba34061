"""Checks of eval tasks: questions that can be asked, scores that are numbers, measures that can be printed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmtune.data.formats.base import Record, unreadable
from mmtune.errors import DataError
from mmtune.eval import report
from mmtune.eval.metrics import Mark
from mmtune.eval.tasks.base import Outcome, Question, Task, TaskConfig
from mmtune.testing._records import Case, case, spoilt

ANSWERS = ("", "something else entirely", "3", "\u00e9" * 50)
"""What a model may answer."""


def make(cls: type[Task], settings: TaskConfig, records: Sequence[Record] = ()) -> Case:
    """A task with records that it can ask about."""
    return case(cls(settings), records)


def questions_of(given: Case) -> list[Question]:
    """All questions of the good records."""
    return list(given.entry.questions(given.records))


def outcomes_of(given: Case) -> list[Outcome]:
    """Every question answered rightly and otherwise."""
    task = given.entry
    pairs = [(one, text) for one in questions_of(given) for text in (one.answers[0], *ANSWERS)]
    return [Outcome(one, text, task.judge(one, text), nats=2.0, tokens=4) for one, text in pairs]


def questions_can_be_asked(given: Case) -> None:
    """Each has an id of its own, ends with the turn of the user, and has an answer; they are the same each time."""
    asked = questions_of(given)
    assert asked, "no question of any record"
    assert len({one.id for one in asked}) == len(asked), "an id twice"
    for one in asked:
        assert one.sample.turns[-1].role == "user", f"{one.id} ends with {one.sample.turns[-1].role}"
        assert one.answers and all(isinstance(text, str) and text for text in one.answers), f"{one.id}: {one.answers}"
    assert [one.id for one in questions_of(given)] == [one.id for one in asked], "other questions the second time"


def answers_are_scored(given: Case) -> None:
    """Numbers by name, the same names for every answer; an accepted answer is right where one can be."""
    outcomes = outcomes_of(given)
    names = {tuple(sorted(one.scores)) for one in outcomes}
    assert len(names) == 1, f"scores of different names: {sorted(names)}"
    for one in outcomes:
        odd = {name: value for name, value in one.scores.items() if not math.isfinite(value)}
        assert not odd, f"{one.question.id}, answer {one.answer!r}: {odd}"
        if one.answer in one.question.answers:
            assert given.entry.is_right(one.scores) is not False, f"{one.question.id}: its own answer is wrong"


def measures_can_be_printed(given: Case) -> None:
    """Over any number of outcomes; those that the class names are there."""
    task, outcomes = given.entry, outcomes_of(given)
    odd = {name: way for name, way in task.measures.items() if way not in ("higher", "lower")}
    assert not odd, f"`measures` says which way is better, higher or lower: {odd}"
    for some in (outcomes, outcomes[:1]):
        found = task.measured(some)
        assert found and all(isinstance(value, int | float) for value in found.values()), f"measures {found}"
    judged = [task.is_right(one.scores) for one in outcomes]
    marks = [
        Mark(one.question.type, one.question.temporal, bool(right), one.answer, one.question.answers[0])
        for one, right in zip(outcomes, judged, strict=True)
    ]
    result = {
        "task": task.config.model_dump(mode="json"), "records": len(given.records), "seconds": 0.0, "skipped": {},
        "unusual": {}, "right": None if None in judged else task.right or "accuracy",
        **report.summary({"plain": marks}), "measures": {"plain": report.measures(task, marks, outcomes)},
    }  # fmt: skip
    text = report.text(result)
    assert all(name.replace("_", " ") in text for name in task.measured(outcomes)), f"not all measures in\n{text}"


def records_that_miss_something_are_skipped_by_name(given: Case) -> None:
    """Whatever is left out or odd, a record gives questions, none, or an error with a reason and its id."""
    refused = 0
    for what, record in spoilt(given.records):
        try:
            with unreadable(record.id, f"the task {given.config.name}"):
                list(given.entry.questions([record]))
        except DataError as error:
            refused += 1
            assert record.id in error.seen, f"{what}: the error does not name {record.id}: {error.seen}"
    assert refused, "whatever was missing, every record was asked about"


CHECKS = (
    questions_can_be_asked,
    answers_are_scored,
    measures_can_be_printed,
    records_that_miss_something_are_skipped_by_name,
)
