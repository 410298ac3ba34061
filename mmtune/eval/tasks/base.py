"""The contract of benchmarks: questions out of a corpus, and the right answers to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmtune.config import Config
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

    measures: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {"accuracy": "higher"}
    """What `summary` gives, and which way is better."""
    right: ClassVar[str | None] = "accuracy"
    """The score that is 1 for a right answer and 0 for a wrong one; its share is given with an interval. None: no
    answer is simply right or wrong."""
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
        return {name: sum(one.scores[name] for one in outcomes) / len(outcomes) for name in self.measures}


Contract = Task
