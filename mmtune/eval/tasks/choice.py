"""Multiple choice with records of your own: the model's answer is the choice that it finds likeliest.

A record in any training format has its choices in its JSON, beside the conversation, as `choices: [red, green]`; a
mapping of labels to texts, and `{label: [...], text: [...]}`, are read too. The last turn of the assistant is the right
answer: a choice, its label (A, B, ... where there are none), or both, as `(B) green`. Choices are scored as the record
spells its answer, so where it says `B`, letters are compared, and the question has to name the choices.

`accuracy` is by the log-likelihood of a whole choice; `accuracy_norm` divides that by the bytes of the choice, as
`acc_norm` of lm-evaluation-harness does, for a long choice is less likely only because it is long.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from mmtune import registry
from mmtune.data import _json
from mmtune.data.formats.base import Format, Record
from mmtune.errors import DataError, Reason
from mmtune.eval.metrics import normalise
from mmtune.eval.tasks.base import Outcome, Question, Task, TaskConfig
from mmtune.recipe import FormatEntry


class Config(TaskConfig):
    name: str = "choice"
    format: FormatEntry = Field(default={"name": "llava"})
    """The data format of the records; a name, or a name with options."""
    field: str = "choices"
    """Key of the choices in the JSON of a record."""


class Choice(Task):
    """Answers among choices, one question for each record."""

    Config = Config
    config: Config
    measures = {"accuracy": "higher", "accuracy_norm": "higher"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._format: Format = registry.find("data/formats", config.format.name)(config.format)

    def questions(self, corpus: Iterable[Record]) -> Iterator[Question]:
        """Record by record. Raises DataError as the format does, and for choices that are equal or that the
        right answer is not one of."""
        for record in corpus:
            sample = self._format.read(record)
            facts = _json.tree(record.files["json"], f"{record.id}.json")
            turns = [index for index, turn in enumerate(sample.turns) if turn.role == "assistant"]
            if not turns or not turns[-1] or sample.turns[turns[-1] - 1].role != "user":
                raise DataError(Reason.empty_target, f"{record.id}: no question with an answer", "one of each")
            said = sample.turns[turns[-1]].text.strip()
            where = f"{record.id}: {self.config.field}"
            choices, right = _spelled(said, *_choices(facts.get(self.config.field), where))
            if right is None:
                raise DataError(Reason.bad_json, f"{record.id}: the answer {said[:60]!r}", f"one of {choices}")
            asked = replace(sample, turns=sample.turns[: turns[-1]])
            yield Question(record.id, asked, (right,), str(facts.get("type") or ""), choices=tuple(choices))

    def score(self, question: Question, answer: str) -> dict[str, float]:
        return {"accuracy": float(answer == question.answers[0])}

    def summary(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """The shares of right answers, by likelihood and by likelihood for each byte."""
        plain = sum(one.scores["accuracy"] for one in outcomes)
        return {"accuracy": plain / len(outcomes), "accuracy_norm": sum(map(_right_by_byte, outcomes)) / len(outcomes)}


def _right_by_byte(outcome: Outcome) -> bool:
    """Whether the choice with the most likelihood for each of its bytes is the right one; as answered without any."""
    choices = outcome.question.choices
    if not outcome.choices:
        return outcome.answer == outcome.question.answers[0]
    by_byte = [chance / len(text.encode()) for chance, text in zip(outcome.choices, choices, strict=True)]
    return choices[max(range(len(by_byte)), key=by_byte.__getitem__)] == outcome.question.answers[0]


SPELLINGS = ("{text}", "{label}", "({label})", "{label}.", "{label})", "{label}. {text}", "{label}) {text}",
             "({label}) {text}", "{label}: {text}", "{label} {text}")  # fmt: skip
"""How records spell an answer."""


def _spelled(said: str, texts: list[str], labels: list[str]) -> tuple[list[str], str | None]:
    """The choices as the answer is spelled, and which of them it is; None if it is none of them."""
    ways = [[_fill(way, label, text) for label, text in zip(labels, texts, strict=True)] for way in SPELLINGS]
    for same in (str, normalise):
        for choices in ways:
            for choice in choices:
                if same(choice) == same(said):
                    return choices, choice
    return texts, None


def _fill(way: str, label: str, text: str) -> str:
    return way.replace("{label}", label).replace("{text}", text)


def _choices(value: Any, where: str) -> tuple[list[str], list[str]]:
    """Texts and labels of choices. Raises DataError."""
    labels: Any = list(string.ascii_uppercase)
    if isinstance(value, dict):
        both = isinstance(value.get("text"), list) and isinstance(value.get("label"), list)
        labels, value = (value["label"], value["text"]) if both else (list(value), list(value.values()))
    if not isinstance(value, list) or not 2 <= len(value) <= len(labels):
        expected = f"a list of 2 to {len(string.ascii_uppercase)} choices, or a label for each"
        raise DataError(Reason.missing_key, f"{where} is {str(value)[:60]}", expected)
    texts, labels = ([str(one).strip() for one in held] for held in (value, labels[: len(value)]))
    for held in (texts, labels):
        if not all(held) or len(set(map(normalise, held))) < len(held):
            raise DataError(Reason.bad_json, f"{where} is {held}", "choices that differ, none of them empty")
    return texts, labels
