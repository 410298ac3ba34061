"""What the rooms of the converter hand each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmtune.errors import DataError, Reason

Row = dict[str, Any]
"""A record as its source spells it."""


@dataclass(frozen=True)
class Raw:
    """One record as it stands in its source; either `row` or `fault` is given."""

    number: int
    """Of the record in its source, from 1."""
    line: int | None = None
    """Line of its first character in its file, from 1; None where a file has no lines."""
    offset: int = 0
    """Bytes of the file before it."""
    row: Row | None = None
    fault: DataError | None = None
    file: str = ""
    """Name of its file, where the source has several."""

    @property
    def where(self) -> str:
        """For messages."""
        at = f"record {self.number}" + (f", line {self.line}" if self.line else "")
        return f"{self.file}: {at}" if self.file else at


@dataclass(frozen=True)
class Piece:
    """Neighbouring records that become one shard, and where to begin reading them."""

    first: int
    """Number of the first record, from 1."""
    count: int
    start: Any = None
    """What the reader of the source needs to find them."""


@dataclass(frozen=True)
class Refusal:
    """A record that was not written."""

    number: int
    line: int | None
    file: str
    reason: Reason
    seen: str
    expected: str = ""
    hint: str = ""

    @classmethod
    def of(cls, raw: Raw, error: DataError) -> Refusal:
        return cls(raw.number, raw.line, raw.file, error.reason, error.seen, error.expected, error.hint)

    def line_of_report(self) -> dict[str, Any]:
        """As `convert.jsonl` holds it."""
        known = {"record": self.number, "line": self.line, "file": self.file, "reason": str(self.reason)}
        said = {"message": self.seen, "expected": self.expected, "try": self.hint}
        return {key: value for key, value in {**known, **said}.items() if value not in (None, "")}


@dataclass(frozen=True)
class Options:
    """What a user may choose about a conversion."""

    format: str = "auto"
    """Spelling of the records, or auto."""
    media: tuple[str, ...] = ()
    """Folders that the names of media are relative to, and which they may not leave. None: the folder of the source."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Name of a field in the source to the name under which it is read."""
    ignore: tuple[str, ...] = ()
    """Fields of records, turns and parts that are left out of the shards."""
    split: str | None = None
    """Of a data set that has several."""
    per_shard: int | None = None
    """Records of the source that become one shard; none: what makes about 256 MB by the first ones, 1000 at most."""
    limit: int | None = None
    """Only so many records."""
    frame_rate: float = 1.0
    """Frames a second of a video that is given as pictures, where its record has no `fps`."""


def bad_json(seen: str, expected: str = "a JSON object", hint: str = "") -> DataError:
    return DataError(Reason.bad_json, seen, expected, hint)


def bad_text(seen: str, expected: str = "UTF-8 text", hint: str = "") -> DataError:
    return DataError(Reason.bad_text, seen, expected, hint)
