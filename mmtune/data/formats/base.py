"""The contract of formats: how one raw record of a dataset spells a conversation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from mmtune.config import Config
from mmtune.errors import DataError, Reason, ShapeError
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
    sequences: ClassVar[int] = 1
    """Conversations that its samples have: 2 for pairs of answers, which go to an objective that takes as many."""

    def __init__(self, config: FormatConfig) -> None:
        self.config = config

    def read(self, record: Record) -> Sample:
        """The conversation of a record, as the program asks for it: see `sample`.

        Raises DataError, whatever an entry stumbles over: see `unreadable`.
        """
        with unreadable(record.id, f"the format {self.config.name}"):
            return self.sample(record)

    @abstractmethod
    def sample(self, record: Record) -> Sample:
        """The conversation of a record; media stay references.

        Raises:
            DataError: with the reason under which the ledger counts the record.
        """


@contextmanager
def unreadable(id: str, reader: str) -> Iterator[None]:
    """Within, what raises because a record is not as a reader takes it for granted becomes a DataError that names the
    record, so that it is skipped and counted: missing_key for a key or member that is not there, else bad_json.

    Args:
        reader: who reads the record, for the error.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, ShapeError) as error:
        missing = isinstance(error, KeyError)
        raise DataError(
            Reason.missing_key if missing else Reason.bad_json,
            f"{id}: " + (f"no {error}" if missing else f"{type(error).__name__}: {getattr(error, 'seen', error)}"),
            f"a record that {reader} can read",
            "name the format that the records are written in; `mmtune data check` shows which records are refused",
        ) from error


Contract = Format
