"""Your own records, in any training format: the model is asked for every answer in them.

Each turn of the assistant that carries loss is a question; the turns before it in the record, earlier answers
included, are the conversation so far. The answer is compared with that of the record: exact match, F1 of tokens,
ROUGE-L. The likelihood of the record's answers is computed too; `perplexity` is exp(nats / tokens) over all of them
together, the token that ends an answer included.

Scores are also given by type, if records name one in a field `type`, `question_type` or `category` of their JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from mmtune import registry
from mmtune.data import _json
from mmtune.data.formats.base import Format, Record
from mmtune.eval.metrics import exact_match, rouge_l, token_f1
from mmtune.eval.tasks.base import Outcome, Question, Task, TaskConfig
from mmtune.recipe import FormatEntry

TYPES = ("type", "question_type", "category")
"""Fields of a record that may name the type of its questions; the first one present counts."""


class Config(TaskConfig):
    name: str = "qa"
    format: FormatEntry = Field(default={"name": "llava"})
    """The data format of the records; a name, or a name with options."""
    max_tokens: int = 128
    """Longest answer, tokens."""


class QA(Task):
    """Answers of records, one question each."""

    Config = Config
    config: Config
    measures = {"exact_match": "higher", "f1": "higher", "rouge_l": "higher", "perplexity": "lower"}
    right = "exact_match"
    likelihood = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._format: Format = registry.find("data/formats", config.format.name)(config.format)

    def questions(self, corpus: Iterable[Record]) -> Iterator[Question]:
        """Record by record. Raises DataError as the format does."""
        for record in corpus:
            sample, name = self._format.read(record), _type(record)
            for index, turn in enumerate(sample.turns):
                if turn.role == "assistant" and turn.weight and turn.text.strip():
                    before = sample.turns[:index]
                    if before and before[-1].role == "user":
                        asked = replace(sample, turns=before)
                        yield Question(f"{record.id}#{index}", asked, (turn.text.strip(),), name)

    def score(self, question: Question, answer: str) -> dict[str, float]:
        return {
            "exact_match": float(exact_match(answer, question.answers)),
            "f1": token_f1(answer, question.answers),
            "rouge_l": rouge_l(answer, question.answers),
        }

    def summary(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """The means, and the perplexity over all tokens."""
        scores = ("exact_match", "f1", "rouge_l")
        means = {name: sum(one.scores[name] for one in outcomes) / len(outcomes) for name in scores}
        tokens = sum(one.tokens for one in outcomes)
        mean = sum(one.nats for one in outcomes) / tokens if tokens else math.nan
        return {**means, "perplexity": math.inf if mean > 700 else math.exp(mean)}  # exp(710) is no number any more


def _type(record: Record) -> str:
    if "json" not in record.files:
        return ""
    facts: dict[str, Any] = _json.tree(record.files["json"], f"{record.id}.json")
    return next((str(facts[name]) for name in TYPES if isinstance(facts.get(name), str | int)), "")
