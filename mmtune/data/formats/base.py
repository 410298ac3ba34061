"""The contract of formats: how one raw record of a dataset spells a conversation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mmtune.config import Config
from mmtune.types import Sample


@dataclass(frozen=True)
class Record:
    """The files of one sample of a shard, undecoded."""

    id: str
    """Unique in the corpus: shard and key."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Suffix without its leading dot, in lower case ("jpg", "json"), to content. May read when asked."""
    key: str = ""
    """Name of the members up to the suffix."""
    draw: int = 0
    """Drawn for this sample in this epoch: what formats choose by where a record offers several texts."""


class FormatConfig(Config):
    """What every format's config has."""

    name: str
    """Name of the format: its file in this room, or package.module:Class."""


class Format(ABC):
    """One spelling of records."""

    Config: ClassVar[type[FormatConfig]] = FormatConfig

    def __init__(self, config: FormatConfig) -> None:
        self.config = config

    @abstractmethod
    def sample(self, record: Record) -> Sample:
        """The conversation of a record; media stay references.

        Raises:
            DataError: with the reason under which the ledger counts the record.
        """


Contract = Format
