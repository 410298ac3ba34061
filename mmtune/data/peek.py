"""The first records of some shards, read without an index: what they hold, and which format reads them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mmtune import registry
from mmtune.data import _names, _tar
from mmtune.data.formats.base import Record
from mmtune.data.patterns import expand
from mmtune.errors import DataError
from mmtune.types import Kind, MediaRef, Sample

RECORDS = 64
"""Most records looked at."""
SHARDS = 3
"""Most shards looked at."""
MEMBER = 1 << 30
"""Largest member read, bytes."""
FORMATS = ("llava", "alpaca", "caption")
"""Formats in the order in which they are tried; those that are asked for more in a record come first."""


@dataclass
class Seen:
    """What was found."""

    shards: int
    """Shards of the patterns, all of them."""
    format: str
    """The format that reads most of the records."""
    records: int = 0
    """Records looked at."""
    samples: list[Sample] = field(default_factory=list)
    """Those that the format can read."""
    kinds: Counter[Kind] = field(default_factory=Counter)
    """Media items by kind."""
    refused: str = ""
    """Why the first one that it can't read is refused."""

    @property
    def whole(self) -> bool:
        """Whether all records of all shards were looked at."""
        return self.shards <= SHARDS and self.records < RECORDS


def look(patterns: Sequence[str]) -> Seen:
    """Look at the first records of the first shards.

    Raises:
        DataError: no shards, or nothing in them that any format can read.
        UsageError: what is named there is no shard.
    """
    files = [Path(str(path)) for path in expand(patterns)]
    records = list(islice((record for path in files[:SHARDS] for record in read(path)), RECORDS))
    tried = [_read(records, name, len(files)) for name in (*FORMATS, *registry.names("data/formats"))]
    best = max(tried, key=lambda seen: len(seen.samples))  # the first of equals
    if not best.samples:
        why = f"; {best.refused}" if best.refused else ""
        raise DataError(
            "missing_key",
            f"{', '.join(map(str, patterns))}: {len(records)} records, none of which any format reads{why}",
            "records as `mmtune data convert` writes them",
            "mmtune data convert --help",
        )
    return best


def read(path: Path) -> Iterator[Record]:
    """The records of a shard in their order; members that stand apart from the others of their sample make two."""
    key, files = "", dict[str, bytes]()
    with path.open("rb") as file:
        for item in _tar.walk(file.fileno()):
            named = _names.split(item.name) if isinstance(item, _tar.Member) and item.type == "0" else None
            if named is None or item.size > MEMBER:  # type: ignore[union-attr]
                continue
            if named[0] != key and files:
                yield Record(f"{path.name}/{key}", files, key)
                files = {}
            key = named[0]
            files[named[1]] = os.pread(file.fileno(), item.size, item.offset)  # type: ignore[union-attr]
    if files:
        yield Record(f"{path.name}/{key}", files, key)


def _read(records: Sequence[Record], name: str, shards: int) -> Seen:
    chosen = registry.find("data/formats", name)
    reader, seen = chosen(chosen.Config()), Seen(shards, name)
    for record in records:
        seen.records += 1
        try:
            made = reader.sample(record)
        except DataError as error:
            seen.refused = seen.refused or str(error.seen)
            continue
        for sample in made if isinstance(made, (list, tuple)) else [made]:
            seen.samples.append(sample)
            seen.kinds.update(part.kind for turn in sample.turns for part in turn.parts if isinstance(part, MediaRef))
    return seen
