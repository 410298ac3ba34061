"""The contract of benchmarks: questions about the records of a corpus, and scores of answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from mmtune.config import Config, cross_field
from mmtune.errors import ConfigError
from mmtune.eval.instructions import PLACE
from mmtune.types import Sample


class TaskConfig(Config):
    """Options of every task."""

    name: str
    """Name of the task: its file in this room, or package.module:Class."""
    max_tokens: int = 24
    """Longest answer, tokens."""
    instructions: tuple[str, ...] = ()
    """Wordings, each with {question} in it, in which every question is asked once more: two at least, or none. The
    report then says how far the scores depend on the wording."""

    @field_validator("instructions")
    @classmethod
    def _can_be_compared(cls, instructions: tuple[str, ...]) -> tuple[str, ...]:
        bare = [text for text in instructions if PLACE not in text]
        if bare or len(set(instructions)) < len(instructions) or len(instructions) == 1:
            what = f"{bare[0]!r} has no {PLACE}" if bare else f"{len(set(instructions))} wording"
            raise cross_field(f"{what}; two wordings or more that differ, each with {PLACE} in it")
        return instructions


@dataclass(frozen=True)
class Question:
    """One question."""

    id: str
    sample: Sample
    """The conversation up to and including the question, without the assistant's answer."""
    answers: tuple[str, ...]
    """Every accepted answer, best first."""
    type: str = ""
    """Scores are also given per kind."""
    temporal: bool = False
    """Whether the answer depends on the order of the frames; such questions are also scored apart."""
    choices: tuple[str, ...] = ()
    """What may be answered: the answer is then the likeliest of these, and nothing is decoded. The accepted answers are
    among them."""


@dataclass(frozen=True)
class Outcome:
    """One question with its answer and scores."""

    question: Question
    answer: str
    scores: Mapping[str, float]
    """The result of `Task.score`."""
    nats: float = 0.0
    """Cross entropy of the first accepted answer, summed over its tokens; 0 unless the task has `likelihood`."""
    tokens: int = 0
    """Tokens of that answer, the one that ends it included."""
    choices: tuple[float, ...] = ()
    """Log-likelihood of each choice of the question, nats, if it has any."""


class Task(ABC):
    """One benchmark."""

    Config: ClassVar[type[TaskConfig]] = TaskConfig

    measures: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {}
    """The measures of `summary`, and which way is better. Without them, the mean of each score, and higher is
    better."""
    right: ClassVar[str | None] = None
    """The score that is 1 for a right answer and 0 for a wrong one; its mean is given with an interval. None:
    `accuracy` if `score` gives one; else answers are neither right nor wrong."""
    likelihood: ClassVar[bool] = False
    """Whether the model is also asked how likely the first accepted answer is, see `Outcome.nats`."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @abstractmethod
    def questions(self, corpus: Iterable[Any]) -> Iterator[Question]:
        """The questions of a corpus, in its order."""

    @abstractmethod
    def score(self, question: Question, answer: str) -> dict[str, float]:
        """Scores of one answer by name."""

    def summary(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Every measure over some outcomes, at least one: the means of the scores, of those that `measures` has if it
        has any. Override it for a measure of the whole corpus, which is no mean."""
        names = [name for name in outcomes[0].scores if not self.measures or name in self.measures]
        return {name: sum(one.scores[name] for one in outcomes) / len(outcomes) for name in names}

    def judge(self, question: Question, answer: str) -> dict[str, float]:
        """The checked scores of one answer. Raises ConfigError if they are not all numbers, or if the score named by
        `right` is missing."""
        scores = self.score(question, answer)
        if not all(isinstance(value, int | float) for value in scores.values()):
            raise ConfigError(f"the task {self.config.name} scores {scores!r}", "names with numbers")
        if self.right is not None and self.right not in scores:
            raise _absent(self, f"`right` is {self.right!r}", scores)
        return {name: float(value) for name, value in scores.items()}

    def is_right(self, scores: Mapping[str, float]) -> bool | None:
        """Whether an answer with these scores is right; None if no score tells."""
        value = scores.get(self.right or "accuracy")
        return None if value is None else value > 0.5

    def measured(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """`summary`, checked. Raises ConfigError if it lacks one of `measures`."""
        try:
            found = self.summary(outcomes)
        except KeyError as error:
            raise _absent(self, f"a measure {error}", outcomes[0].scores) from error
        if missing := sorted(set(self.measures) - set(found)):
            raise _absent(self, f"`measures` has {', '.join(missing)}", found)
        return found


def _absent(task: Task, what: str, there: Mapping[str, float]) -> ConfigError:
    return ConfigError(
        f"the task {task.config.name}: {what}, and there is only {', '.join(there) or 'nothing'}",
        "every score that the class names",
        f"name what `score` and `summary` of {type(task).__name__} give",
    )


Contract = Task
