"""The first records of some shards, read without an index: what they hold, and which format reads them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from mmtune import registry
from mmtune.addresses import without_secrets
from mmtune.data import _keys, _tar, index
from mmtune.data.formats.base import Record
from mmtune.data.patterns import expand
from mmtune.errors import DataError, UsageError
from mmtune.types import Kind, MediaRef, Sample

RECORDS = 64
"""Most records looked at."""
SHARDS = 3
"""Most shards looked at."""
MEMBERS = 16
"""Most members for each record looked at."""
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
    whole: bool = False
    """Whether all records of all shards were looked at."""
    records: int = 0
    """Records looked at."""
    samples: list[Sample] = field(default_factory=list)
    """Those that the format can read."""
    kinds: Counter[Kind] = field(default_factory=Counter)
    """Media items by kind."""
    refused: str = ""
    """Why the first one that it can't read is refused."""

    def with_more(self, other: Seen | None) -> Seen:
        """This and what other data of the format hold; those that are not on this machine leave it not whole."""
        if other is None:
            return replace(self, whole=False)
        return Seen(
            self.shards + other.shards,
            self.format,
            self.whole and other.whole,
            self.records + other.records,
            [*self.samples, *other.samples],
            self.kinds + other.kinds,
            self.refused or other.refused,
        )


def look(patterns: Sequence[str]) -> Seen:
    """Look at the first records of the first shard, of one in the middle, and of the last: a set may be a mixture.

    Raises:
        DataError: no shards, or nothing in them that any format can read.
        UsageError: what is named there is no shard, or is elsewhere: nothing is fetched for a look.
    """
    files = [path for path in expand(patterns) if isinstance(path, Path)]
    if not files:
        raise UsageError(f"{', '.join(without_secrets(patterns))}: shards elsewhere", "shards on this machine")
    chosen = [files[round(n * (len(files) - 1) / max(1, SHARDS - 1))] for n in range(min(SHARDS, len(files)))]
    found = [read(path, -(-RECORDS // len(chosen))) for path in dict.fromkeys(chosen)]
    records = [record for several, _ in found for record in several]
    whole = len(found) == len(files) and all(all_of_it for _, all_of_it in found)
    tried = [_read(records, name, len(files), whole) for name in (*FORMATS, *registry.names("data/formats"))]
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


def read(path: Path, most: int) -> tuple[list[Record], bool]:
    """The first records of a shard, and whether they are all of it. Raises DataError: a tar that is packed."""
    with path.open("rb") as file:
        index.check_plain(path, file.fileno())
        plain = (item for item in _tar.walk(file.fileno()) if isinstance(item, _tar.Member) and item.type == "0")
        members = [item for item in islice(plain, most * MEMBERS) if item.size <= MEMBER]
        split_names = _keys.keys(item.name for item in members)
        groups: dict[str, dict[str, _tar.Member]] = {}
        for item in members:
            if item.name in split_names:
                key, suffix = split_names[item.name]
                groups.setdefault(key, {})[suffix] = item
        whole = len(groups) <= most and next(plain, None) is None
        if not whole and 1 < len(groups) <= most:
            groups.popitem()  # may be cut
        return [
            Record(
                f"{path.name}/{key}",
                {suffix: os.pread(file.fileno(), item.size, item.offset) for suffix, item in files.items()},
                key,
            )
            for key, files in islice(groups.items(), most)
        ], whole


def _read(records: Sequence[Record], name: str, shards: int, whole: bool) -> Seen:
    chosen = registry.find("data/formats", name)
    reader, seen = chosen(chosen.Config()), Seen(shards, name, whole)
    for record in records:
        seen.records += 1
        try:
            made = reader.read(record)
        except DataError as error:
            seen.refused = seen.refused or str(error.seen)
            continue
        for sample in made if isinstance(made, (list, tuple)) else [made]:
            seen.samples.append(sample)
            seen.kinds.update(part.kind for turn in sample.turns for part in turn.parts if isinstance(part, MediaRef))
    return seen
