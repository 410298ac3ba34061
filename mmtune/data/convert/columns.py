"""Rows of parquet and of Arrow files, as `datasets.save_to_disk` writes them. The one file that imports pyarrow, and
only the process of `_columns_child` does so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from mmtune.data.convert.base import Raw, Row, bad_json
from mmtune.errors import DataError

MOST = 8
"""Most rows in a byte of a file: none takes less than a bit."""
BATCH = 32
"""Rows read at once; pictures may be in them."""


@dataclass(frozen=True)
class Start:
    """Where reading begins."""

    row: int = 0
    """In the file, from 0."""
    number: int = 1
    """Of that row in the source, from 1."""


def count(file: IO[bytes], name: str, size: int) -> int:
    """Rows of a file of so many bytes, without reading them. Raises DataError for a file that cannot be read."""
    arrow, parquet, ipc = packages()
    try:
        rows = _promised(parquet, file) if _is_parquet(file) else sum(one.num_rows for one in _batches(ipc, file))
        if not 0 <= rows <= MOST * size:
            raise bad_json(f"{name} promises {rows} rows in {size} bytes", f"at most {MOST} a byte")
        return rows
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise bad_json(f"{name}: {_first_line(error)}", "a whole parquet or Arrow file") from error


def read(file: IO[bytes], start: Start) -> Iterator[Raw]:
    """Rows from `start` on; what cannot be read is a fault. A file that breaks off ends with one."""
    arrow, parquet, ipc = packages()
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


def _promised(parquet: Any, file: IO[bytes]) -> int:
    """Rows of all groups of a parquet file; its own totals are not trusted."""
    about = parquet.ParquetFile(file).metadata
    groups = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
    if min(groups, default=0) < 0:
        raise ValueError("a group of fewer rows than none")
    return sum(groups)


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
    names = batch.schema.names
    if len(set(names)) < len(names):
        raise ValueError(f"a column name comes twice: {', '.join(names)[:200]}")
    batch.validate(full=True)  # offsets of a damaged file would be followed anywhere
    return list(batch.to_pylist())


def _first_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):  # pyarrow's own is one, too
        return "it takes more memory than it may"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def packages() -> tuple[Any, Any, Any]:
    """pyarrow, and its modules for parquet and for Arrow files."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet, pyarrow.ipc
