"""The contract of benchmarks: questions out of a corpus, and the right answers to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmtune.config import Config
from mmtune.errors import ConfigError
from mmtune.types import Sample


class TaskConfig(Config):
    """What every task's config has."""

    name: str
    """Name of the task: its file in this room, or package.module:Class."""
    max_tokens: int = 24
    """Longest answer, tokens."""


@dataclass(frozen=True)
class Question:
    """One thing to ask."""

    id: str
    sample: Sample
    """The conversation up to and including the question; the assistant's last turn is left out."""
    answers: tuple[str, ...]
    """Every accepted answer, best first."""
    type: str = ""
    """Scores are also given per kind."""
    temporal: bool = False
    """Whether the answer depends on the order of the frames; scored apart from what one frame shows."""


@dataclass(frozen=True)
class Outcome:
    """One question with what came of it."""

    question: Question
    answer: str
    scores: Mapping[str, float]
    """What `Task.score` gave."""
    nats: float = 0.0
    """Cross entropy of the first accepted answer, summed over its tokens; 0 where it was not asked for."""
    tokens: int = 0
    """Tokens of that answer, the one that ends it included."""


class Task(ABC):
    """One benchmark."""

    Config: ClassVar[type[TaskConfig]] = TaskConfig

    measures: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {}
    """What `summary` gives, and which way is better. Where a task does not say, it is the mean of each score, and
    higher is better."""
    right: ClassVar[str | None] = None
    """The score that is 1 for a right answer and 0 for a wrong one; its share is given with an interval. None: that is
    `accuracy` where `score` gives one; else no answer is simply right or wrong."""
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
        """Every measure over some outcomes, at least one: the means of the scores. A measure of the whole corpus, which
        is no mean, is computed here."""
        names = self.measures or outcomes[0].scores
        return {name: sum(one.scores[name] for one in outcomes) / len(outcomes) for name in names}

    def judge(self, question: Question, answer: str) -> dict[str, float]:
        """The scores of one answer, as the program asks for them. Raises ConfigError when they are not all numbers, or
        when the one that the task calls `right` is not among them."""
        scores = self.score(question, answer)
        if not all(isinstance(value, int | float) for value in scores.values()):
            raise ConfigError(f"the task {self.config.name} scores {scores!r}", "names with numbers")
        if self.right is not None and self.right not in scores:
            raise _absent(self, f"`right` is {self.right!r}", scores)
        return {name: float(value) for name, value in scores.items()}

    def is_right(self, scores: Mapping[str, float]) -> bool | None:
        """Whether an answer with these scores is right; none where no score says so."""
        value = scores.get(self.right or "accuracy")
        return None if value is None else value > 0.5

    def measured(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """`summary`, as the program asks for it. Raises ConfigError when it lacks one of `measures`."""
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
