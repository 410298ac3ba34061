"""An index of a shard as it is stored beside it: `NAME.tar.index.json`.

The file may come from elsewhere, so its size is limited, and each number in it is held against the others before one of
them is used.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmtune import disk
from mmtune.data._keys import keys
from mmtune.data._names import printable
from mmtune.errors import DataError, Reason

VERSION = 2
"""In version 1, names with several dots belong to one sample; such an index is regrouped on reading."""
MOST = 64 << 20
"""Largest index that is read, bytes: some 600,000 members."""
LISTED = 20
"""Most names listed of members that are passed over."""


@dataclass
class Group:
    """One sample as the index sees it."""

    key: str
    ordinal: int = 0
    members: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Suffix to offset, size and sha256 in hex."""
    reason: Reason | None = None
    """Why it is refused; None when it is not."""
    detail: str = ""

    def refuse(self, reason: Reason, detail: str) -> None:
        """Refuse; the first reason stays."""
        if self.reason is None:
            self.reason, self.detail = reason, detail


@dataclass
class ShardIndex:
    """What is known of one shard."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str
    groups: list[Group]
    damage: list[str] = field(default_factory=list)
    """Stretches that could not be read; samples may be lost there without a name."""
    passed: list[str] = field(default_factory=list)
    """Members that are no part of any sample or have a suffix that is not read: up to LISTED names."""
    passed_count: int = 0
    version: int = VERSION
    """Of the file that it was read from."""

    def counts(self) -> dict[str, Any]:
        """Numbers for the manifest."""
        refused = Counter(str(group.reason) for group in self.groups if group.reason)
        return {
            "samples": len(self.groups),
            "refused": dict(sorted(refused.items())),
            "duplicate_keys": sum(group.ordinal > 0 for group in self.groups),
            "members": sum(len(group.members) for group in self.groups),
            "passed_over": self.passed_count,
            "damage": len(self.damage),
            "bytes": self.bytes,
            "sha256": self.sha256,
        }

    def dump(self) -> str:
        """As JSON, in columns: a sample has `sizes[i]` members, which follow each other in `members`."""
        suffixes = sorted({suffix for group in self.groups for suffix in group.members})
        number = {suffix: index for index, suffix in enumerate(suffixes)}
        flat = [(number[s], *where) for group in self.groups for s, where in group.members.items()]
        tree = {
            "version": VERSION,
            "shard": self.name,
            "bytes": self.bytes,
            "mtime_ns": self.mtime_ns,
            "sha256": self.sha256,
            "damage": self.damage,
            "passed_over": {"count": self.passed_count, "names": self.passed},
            "refused": {str(i): [str(g.reason), g.detail] for i, g in enumerate(self.groups) if g.reason},
            "duplicates": {str(i): group.ordinal for i, group in enumerate(self.groups) if group.ordinal},
            "keys": [group.key for group in self.groups],
            "sizes": [len(group.members) for group in self.groups],
            "suffixes": suffixes,
            "members": {
                name: [row[index] for row in flat] for index, name in enumerate(("suffix", "offset", "size", "sha256"))
            },
        }
        return json.dumps(tree, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str, origin: str) -> ShardIndex:
        """The inverse of `dump`. Raises DataError for a file that is no index of this version."""
        try:
            tree = _Stored.model_validate_json(text)
            groups = tree.groups() if tree.version == VERSION else regrouped(tree.groups())
            passed = tree.passed_over
            return cls(*tree.head(), groups, tree.damage, passed.names, passed.count, tree.version)
        except ValueError as error:  # pydantic's own is one
            raise DataError(
                Reason.bad_json,
                f"{origin}: {_first(error)}",
                f"an index of version {VERSION}",
                "delete it, or run `mmtune data index`",
            ) from error


Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(max_length=1 << 16)]
Sum = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Place = Annotated[str, Field(pattern=r"^[0-9]{1,15}$")]
"""A number of a sample; keys of JSON are text."""


class _Part(BaseModel):
    """Strict: a number is a whole number and no text, and what has no meaning here is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Passed(_Part):
    count: Count
    names: list[Name]


class _Members(_Part):
    suffix: list[Count]
    offset: list[Count]
    size: list[Count]
    sha256: list[Sum]


class _Stored(_Part):
    """The content of the file."""

    version: Literal[1, VERSION]
    shard: Name
    bytes: Count
    mtime_ns: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Sum
    damage: list[Name]
    passed_over: _Passed
    refused: dict[Place, tuple[Name, Name]]
    duplicates: dict[Place, Count]
    keys: list[Name]
    sizes: list[Count]
    suffixes: list[Name]
    members: _Members

    @model_validator(mode="after")
    def _agrees(self) -> _Stored:
        members = self.members
        columns = {len(members.suffix), len(members.offset), len(members.size), len(members.sha256)}
        if columns != {sum(self.sizes)} or len(self.keys) != len(self.sizes):
            raise ValueError(f"{len(self.keys)} keys, {len(self.sizes)} sizes, columns of {sorted(columns)} members")
        if max(members.suffix, default=-1) >= len(self.suffixes):
            raise ValueError(f"suffix {max(members.suffix)} of {len(self.suffixes)}")
        ends = (offset + size for offset, size in zip(members.offset, members.size, strict=True))
        if (end := max(ends, default=0)) > self.bytes:
            raise ValueError(f"a member that ends at byte {end} of {self.bytes}")
        named = [*map(int, self.refused), *map(int, self.duplicates)]
        if max(named, default=-1) >= len(self.keys):
            raise ValueError(f"sample {max(named)} of {len(self.keys)}")
        return self

    def head(self) -> tuple[str, int, int, str]:
        return self.shard, self.bytes, self.mtime_ns, self.sha256

    def groups(self) -> list[Group]:
        """Raises ValueError for a reason that does not exist."""
        columns = self.members
        rows = zip(columns.suffix, columns.offset, columns.size, columns.sha256, strict=True)
        groups = []
        for key, size in zip(self.keys, self.sizes, strict=True):
            members = {self.suffixes[row[0]]: row[1:] for row in islice(rows, size)}
            groups.append(Group(printable(key), 0, members))
        for index, ordinal in self.duplicates.items():
            groups[int(index)].ordinal = ordinal
        for index, (reason, detail) in self.refused.items():
            groups[int(index)].refuse(Reason(reason), printable(detail))
        return groups


def regrouped(groups: list[Group]) -> list[Group]:
    """Samples of an index of version 1, by today's keys; those that it refuses stay as they are."""
    split_names = keys(f"{group.key}.{suffix}" for group in groups for suffix in group.members)
    found = []
    for group in groups:
        split: dict[str, Group] = {}
        for suffix, where in group.members.items():
            key, rest = split_names.get(f"{group.key}.{suffix}", (group.key, suffix))
            split.setdefault(key, Group(key, group.ordinal)).members[rest] = where
        found += [group] if group.reason or set(split) <= {group.key} else split.values()
    return found


def _first(error: ValueError) -> str:
    """What is wrong first, in one line that does not quote what was sent."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"[:200]


def read(path: Path, origin: str = "") -> ShardIndex:
    """An index from a disk. Raises DataError for one that is no index, is larger than `MOST`, or is no plain file."""
    origin = origin or str(path)
    try:
        return ShardIndex.parse(disk.read_text(path, MOST), origin)
    except OSError as error:
        raise DataError(Reason.truncated_shard, f"{origin}: {error}", "an index that stays") from error
    except ValueError as error:
        hint = "delete it, or run `mmtune data index`"
        raise DataError(Reason.bad_json, f"{origin}: {error}", f"an index of version {VERSION}", hint) from error
