"""The contract of benchmarks: questions out of a corpus, and the right answers to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mmtune.config import Config
from mmtune.types import Sample


class TaskConfig(Config):
    """What every task's config has."""

    name: str
    """Name of the task: its file in this room, or package.module:Class."""


@dataclass(frozen=True)
class Question:
    """One thing to ask."""

    id: str
    sample: Sample
    """The conversation up to and including the question; the assistant's last turn is left out."""
    answers: tuple[str, ...]
    """Every accepted answer, best first."""
    kind: str = ""
    """Scores are also given per kind."""
    temporal: bool = False
    """Whether the answer depends on the order of the frames; scored apart from what one frame shows."""


class Task(ABC):
    """One benchmark."""

    Config: ClassVar[type[TaskConfig]] = TaskConfig

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @abstractmethod
    def questions(self, corpus: Iterable[Any]) -> Iterator[Question]:
        """The questions of a corpus, in its order."""

    @abstractmethod
    def score(self, question: Question, answer: str) -> dict[str, float]:
        """Scores of one answer by name; a report holds their means."""


Contract = Task
