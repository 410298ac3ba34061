"""Records with something missing or odd, made of good ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmtune.config import Config
from mmtune.data.formats.base import Record

ODD = (None, 3, [], {}, [None], {"a": 1}, "\ud800")
"""Values that a field of a record may turn out to have."""
BROKEN = (b"", b"{", b"[]", b"null", b"3", b"{}", b"\xff\xfe", b'{"a": NaN}')
"""Contents that a .json member may turn out to have."""


@dataclass(frozen=True)
class Case:
    """An entry that reads records, with records that it can read."""

    entry: Any
    records: tuple[Record, ...]

    @property
    def config(self) -> Config:
        """Its settings."""
        return self.entry.config


def case(entry: Any, records: Sequence[Record]) -> Case:
    """Raises AssertionError without records."""
    assert records, "no records to check it with: give records=[Record(...)] that it can read"
    return Case(entry, tuple(records))


def spoilt(records: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    """What was done to a record, and the record."""
    yield "a record without members", Record("test/empty", {}, "empty")
    for record in records:
        for suffix in record.files:
            rest = {name: data for name, data in record.files.items() if name != suffix}
            yield f"no .{suffix}", replace(record, files=rest)
        if "json" not in record.files:
            continue
        for content in BROKEN:
            yield f"{content!r} as .json", replace(record, files={**record.files, "json": content})
        facts = json.loads(record.files["json"])
        for what, other in _changed(facts):
            yield what, replace(record, files={**record.files, "json": json.dumps(other).encode()})


def _changed(facts: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """JSON values with one key or entry left out or made odd, at any depth."""
    if isinstance(facts, dict):
        places: Sequence[Any] = list(facts)
    elif isinstance(facts, list):
        places = range(len(facts))
    else:
        return
    for key in places:
        where, copy = f"{path}.{key}".strip("."), dict(facts) if isinstance(facts, dict) else list(facts)
        value = copy.pop(key)
        yield f"no {where}", copy
        others = [(f"{where} is {odd!r}", odd) for odd in ODD]
        for what, other in [*others, *_changed(value, where)]:
            changed = dict(facts) if isinstance(facts, dict) else list(facts)
            changed[key] = other
            yield what, changed
