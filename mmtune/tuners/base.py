"""The contract of tuners: change a language model in place, and say what was added or opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from mmtune.config import Config
from mmtune.llm.base import LLM


class TunerConfig(Config):
    """What every tuner's config has."""

    name: str
    """Name of the tuner: its file in this room, or package.module:Class."""


class Tuner(ABC):
    """One way to tune a language model with few parameters."""

    Config: ClassVar[type[TunerConfig]] = TunerConfig

    def __init__(self, config: TunerConfig) -> None:
        self.config = config

    @abstractmethod
    def apply(self, llm: LLM) -> list[str]:
        """Change `llm` in place; return the names, relative to it, of the parameters added or opened.

        A freshly tuned model computes what it computed before. Raises ModelError when nothing fits.
        """


Contract = Tuner
