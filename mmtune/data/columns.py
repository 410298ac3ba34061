"""Numbers of samples that an order sorts by, read once and kept beside the index: `NAME.tar.columns.json`.

A column is a number of the record's .json by its path, or what a function measures. Its table belongs to one content of
its shard: it names the digest, and what was measured names what it was measured with. The file may come from elsewhere,
so each part of it is compared with the index before it is used; one that does not fit is made again.

The price: one pass over the .json of a shard, some 20,000 records a second; 10 to 20 bytes on the disk for each number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmtune import disk
from mmtune.data import _json
from mmtune.data._index_file import MOST, ShardIndex
from mmtune.data.pool import mapped
from mmtune.data.sample_order import SampleKey
from mmtune.data.shards import Corpus
from mmtune.errors import ConfigError, DataError, MediaError, Reason

CHUNK = 256
"""Samples that are read in one piece of work."""
KEPT = 16
"""Most columns of a shard that are kept; the oldest go."""
AWAY = (Reason.truncated_shard, Reason.digest_mismatch)
"""Reasons that say something of a disk: what such a sample has may be known another time, so no table is kept."""


@dataclass(frozen=True)
class Measure:
    """How a column comes about."""

    of: Callable[[SampleKey], float]
    """The number of a sample, NaN for none. May raise DataError and MediaError, which is none as well."""
    made_by: str = ""
    """Digest of all that the numbers depend on beside the shard; other numbers are measured for another one."""
    expected: str = "samples that can be used; `mmtune data check` says why they cannot"
    """What is missing where no sample has a number."""


class _Table(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1]
    sha256: str
    columns: dict[str, list[Annotated[float, Field(allow_inf_nan=False)] | None]]


def number_at(corpus: Corpus, path: str) -> Measure:
    """The column of a number in the records' .json: `difficulty`, or `scores.clip` for one in an object in it."""

    def of(key: SampleKey) -> float:
        record = corpus.record(key)
        if "json" not in record.files:
            return math.nan
        value = _json.tree(record.files["json"], f"{record.id}.json")
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        known = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if known and abs(value) <= 2.0**1000 else math.nan  # a whole number may be too large

    return Measure(of, expected="the path of a number in the .json of the records")


def fill(
    corpus: Corpus,
    measures: Mapping[str, Measure],
    stream: str = "",
    workers: int = 0,
    say: Callable[[str], None] | None = None,
    write: bool = True,
) -> None:
    """Give a corpus its columns: those that are beside its shards, and those that are read now.

    Args:
        measures: by name of the column.
        stream: whose samples they are, for errors.
        workers: processes that read.
        say: told of columns being read and of samples that lack a number.
        write: lay what is read now beside the shards; otherwise it serves this process only.

    Raises:
        ConfigError: a column of which no sample has a number.
    """
    say = say or (lambda text: None)
    stored = {name: f"{name} {one.made_by}".strip() for name, one in measures.items()}
    held = [_stored(corpus.table(number), corpus.index(number)) for number in range(len(corpus.paths))]
    lacking = {number: missing for number, have in enumerate(held) if (missing := [*(set(stored.values()) - {*have})])}
    names = [name for name in measures if any(stored[name] in missing for missing in lacking.values())]
    if names:
        say(f"reading {', '.join(names)} of the samples of {len(lacking)} shards, once")
    for number, found, lasting in _read(corpus, {stored[n]: one for n, one in measures.items()}, lacking, workers):
        held[number] |= found
        if write and lasting:
            kept = dict(list(held[number].items())[-KEPT:])
            columns = {name: [None if math.isnan(v) else v for v in column.tolist()] for name, column in kept.items()}
            tree = {"version": 1, "sha256": corpus.index(number).sha256, "columns": columns}
            with suppress(OSError):  # a folder that is only read is read each time, as its index is made each time
                disk.write_file(corpus.table(number), json.dumps(tree, separators=(",", ":")))
    for name, key in stored.items():
        corpus.columns[name] = [have[key] for have in held]
        bare = sum(int(np.isnan(corpus.column(name, number)).sum()) for number in range(len(held)))
        if bare == len(corpus):
            seen = f"stream {stream}: its order asks for {name!r}, and none of {bare} samples has such a number"
            raise ConfigError(seen, measures[name].expected, f"another name, or streams.{stream}.order=shuffle")
        if bare:
            say(f"warning: {bare} of {len(corpus)} samples have no {name}; where they come is up to the order")


def _stored(path: Path, index: ShardIndex) -> dict[str, np.ndarray]:
    """Columns of a shard that are beside it; None where the file is not there, odd, or of other content."""
    try:
        table = _Table.model_validate_json(disk.read_text(path, MOST))
    except (OSError, ValueError):
        return {}
    if table.sha256 != index.sha256:
        return {}
    columns = {name: np.array(values, dtype=np.float64) for name, values in table.columns.items()}
    return {name: column for name, column in columns.items() if column.shape == (len(index.groups),)}


def _read(
    corpus: Corpus, measures: Mapping[str, Measure], lacking: Mapping[int, list[str]], workers: int
) -> Iterator[tuple[int, dict[str, np.ndarray], bool]]:
    """Number of each shard that lacks columns, these columns, and whether they will be the same another time."""
    sizes = {number: len(corpus.index(number).groups) for number in lacking}
    tasks = [(number, start) for number, size in sizes.items() for start in range(0, size, CHUNK) or [0]]

    def work(number: int, start: int) -> bytes:
        lasting, rows = True, list[list[float]]()
        for place in range(start, min(start + CHUNK, sizes[number])):
            row = []
            for name in lacking[number]:
                try:
                    row.append(measures[name].of(SampleKey(number, place)))
                except (DataError, MediaError) as error:
                    lasting = lasting and error.reason not in AWAY
                    row.append(math.nan)
            rows.append(row)
        return bytes([lasting]) + np.array(rows, dtype=np.float64).tobytes()

    parts: list[bytes] = []
    for (number, start), result in zip(tasks, mapped(work, tasks, workers, _said(corpus)), strict=True):
        parts.append(result)
        if start + CHUNK >= sizes[number]:
            values = np.frombuffer(b"".join(part[1:] for part in parts)).reshape(-1, len(lacking[number]))
            yield number, dict(zip(lacking[number], values.T, strict=True)), all(part[0] for part in parts)
            parts = []


def _said(corpus: Corpus) -> Callable[[tuple[int, int]], str]:
    return lambda task: f"samples from {task[1]} on of {corpus.paths[task[0]]}"
