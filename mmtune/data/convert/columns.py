"""Rows of parquet and of Arrow files, as `datasets.save_to_disk` writes them. The one file that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from mmtune.data.convert.base import Raw, Row, bad_json
from mmtune.errors import DataError, UsageError

BATCH = 32
"""Rows read at once; pictures may be in them."""


@dataclass(frozen=True)
class Start:
    """Where reading begins."""

    row: int = 0
    """In the file, from 0."""
    number: int = 1
    """Of that row in the source, from 1."""


def count(file: IO[bytes], name: str) -> int:
    """Rows of a file, without reading them. Raises DataError for a file that cannot be read."""
    arrow, parquet, ipc = _packages()
    try:
        if _is_parquet(file):
            return int(parquet.ParquetFile(file).metadata.num_rows)
        return sum(batch.num_rows for batch in _batches(ipc, file))
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise bad_json(f"{name}: {_first_line(error)}", "a whole parquet or Arrow file") from error


def read(file: IO[bytes], start: Start) -> Iterator[Raw]:
    """Rows from `start` on; what cannot be read is a fault. A file that breaks off ends with one."""
    arrow, parquet, ipc = _packages()
    number, skip = start.number, start.row
    try:
        for batch in _parquet(parquet, file, skip) if _is_parquet(file) else _batches(ipc, file):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            for one in _cut(batch, skip):
                for row in _rows(arrow, one):
                    fault = row if isinstance(row, DataError) else None
                    yield Raw(number, row=None if fault else row, fault=fault)  # type: ignore[arg-type]
                    number += 1
            skip = 0
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as error:
        fault = bad_json(f"{_first_line(error)}; nothing after this row can be read", "a whole parquet or Arrow file")
        yield Raw(number, fault=fault)


def _is_parquet(file: IO[bytes]) -> bool:
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    return head == b"PAR1"


def _batches(ipc: Any, file: IO[bytes]) -> Iterator[Any]:
    head = file.read(6)
    file.seek(0)
    if head == b"ARROW1":
        reader = ipc.open_file(file)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from ipc.open_stream(file)


def _parquet(parquet: Any, file: IO[bytes], skip: int) -> Iterator[Any]:
    """Batches of the row groups from the one on that has row `skip`, with empty stand-ins for those before it."""
    table = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)  # or a whole row group is held
    first, before = 0, 0
    while first < table.num_row_groups and before + table.metadata.row_group(first).num_rows <= skip:
        before += table.metadata.row_group(first).num_rows
        first += 1
    if before:
        yield _Passed(before)
    groups = range(first, table.num_row_groups)
    if groups:
        yield from table.iter_batches(BATCH, row_groups=list(groups), use_threads=False)


@dataclass(frozen=True)
class _Passed:
    """A batch that is not read, because all of its rows are passed over."""

    num_rows: int


def _cut(batch: Any, skip: int) -> Iterator[Any]:
    for at in range(skip, batch.num_rows, BATCH):
        yield batch.slice(at, BATCH)


def _rows(arrow: Any, batch: Any) -> Iterator[Row | DataError]:
    """Rows of a batch; where it cannot be read as a whole, one after another."""
    try:
        yield from _checked(batch)
        return
    except (arrow.ArrowException, ValueError, OverflowError, MemoryError):
        pass
    for at in range(batch.num_rows):
        try:
            yield _checked(batch.slice(at, 1))[0]
        except (arrow.ArrowException, ValueError, OverflowError, MemoryError) as error:
            yield bad_json(f"the row cannot be read: {_first_line(error)}", "values of the column's type")


def _checked(batch: Any) -> list[Row]:
    batch.validate(full=True)  # offsets of a damaged file would be followed anywhere
    return list(batch.to_pylist())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _packages() -> tuple[Any, Any, Any]:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "a parquet or Arrow file, and no package that reads it",
            "pyarrow",
            "pip install 'mmtune[parquet]'",
        ) from error
    return pyarrow, pyarrow.parquet, pyarrow.ipc
