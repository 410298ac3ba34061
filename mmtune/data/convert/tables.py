"""Rows of CSV and TSV with a line of column names. Lines are those of an editor, also where texts have breaks."""

from __future__ import annotations

import csv
import re
import shlex
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from mmtune.data._names import SUFFIXES
from mmtune.data.convert import strict
from mmtune.data.convert.base import Raw, bad_json
from mmtune.errors import DataError, UsageError

MAX_ROW = 16 << 20
"""Most bytes of one row."""
MAX_LINES = 10_000
"""Most lines of one row. A quote that never closes is noticed there, or at the end of the file."""
NUMBERS = ("fps", "frame_rate", "weight", "loss_weight", "loss_scale")
"""Columns that are numbers in a record."""
_SEPARATOR = re.compile(rb'"?sep=(.)"?[ ,;]*\r?\n', re.IGNORECASE)
"""A first line that names the separator of cells, as spreadsheet programs write it."""


@dataclass(frozen=True)
class Start:
    """Where reading begins, and what every row needs to know."""

    columns: tuple[str, ...]
    delimiter: str
    offset: int
    line: int
    number: int = 1


def start_of(file: IO[bytes], name: str) -> Start:
    """The column names of a table and what parts them. Raises UsageError."""
    file.seek(0)
    head = file.read(1 << 16)
    strict.check_encoding(head, name)
    if b"\r" in head and b"\n" not in head:
        hint = f"tr '\\r' '\\n' < {shlex.quote(name)} > new.csv"
        raise UsageError(f"{name} has lines that end in CR alone", "lines that end in LF, or CR and LF", hint)
    body = head.removeprefix(b"\xef\xbb\xbf")
    said = _SEPARATOR.match(body)
    file.seek(len(head) - len(body) + (said.end() if said else 0))
    lines = _Lines(file, file.tell(), 2 if said else 1)
    delimiter = said[1].decode() if said else _delimiter(body.lstrip().partition(b"\n")[0].decode("utf-8", "replace"))
    try:
        row: list[str] = []
        while not row and not lines.ended:
            row = lines.row(delimiter)
        columns = tuple(column.strip() for column in row)
        for column in columns:
            strict.decode(column.encode("utf-8", "surrogateescape"))
        named = [column for column in columns if column]
        if len(set(named)) != len(named):
            raise bad_json(f"a column name comes twice: {', '.join(columns)}", "a name of its own for each column")
    except DataError as error:
        raise UsageError(f"{name}: {error.seen}", error.expected or "a first line of column names") from error
    if not named:
        raise UsageError(f"{name} is empty", "a first line of column names, as video,caption")
    _check_names(columns, delimiter, name)
    return Start(columns, delimiter, lines.offset, lines.line)


def _delimiter(first: str) -> str:
    """What parts the cells of a line: a tab where there is one, else what comes most often."""
    return "\t" if "\t" in first else max(",;|", key=first.count)


def _check_names(columns: tuple[str, ...], delimiter: str, name: str) -> None:
    """Refuse a table without names of columns, which shows where one of them is the name of a medium."""
    kinds = [SUFFIXES.get(PurePosixPath(column).suffix[1:].lower()) for column in columns]
    if not any(kinds):
        return
    free = iter(("caption", *(f"column{number}" for number in range(2, len(columns) + 1))))
    line = delimiter.join(kind or next(free) for kind in kinds)
    raise UsageError(
        seen=f"{name}: its first line is a record ({', '.join(columns)[:200]})",
        expected="a first line with the names of the columns",
        hint=f"(echo {shlex.quote(line)}; cat {shlex.quote(name)}) > new.csv",
    )


def read(file: IO[bytes], start: Start) -> Iterator[Raw]:
    """Rows from `start` on. A row that cannot be read is a fault, and reading continues at the line after its first."""
    file.seek(start.offset)
    lines = _Lines(file, start.offset, start.line, len(start.columns))
    number = start.number
    while not lines.ended:
        offset, line = lines.offset, lines.line
        row, fault = None, None
        try:
            cells = lines.row(start.delimiter)
            if not cells:
                continue
            row = _named(cells, start)
        except DataError as error:
            fault = error
        yield Raw(number, line, offset, row, fault)
        number += 1


def _named(cells: list[str], start: Start) -> dict[str, Any]:
    """Cells by column. Raises DataError."""
    columns = start.columns
    if any(cell.strip() for cell in cells[len(columns) :]):
        seen = f"{len(cells)} cells in a table of {len(columns)} columns"
        raise bad_json(seen, "as many cells as columns", f"put quotes around a text that has {start.delimiter!r} in it")
    row: dict[str, Any] = {column: None for column in columns if column}
    for column, cell in zip(columns, cells, strict=False):
        text = strict.decode(cell.encode("utf-8", "surrogateescape"))
        if column and text.strip():  # an empty cell says nothing
            row[column] = _number(column, text, start.delimiter) if column.lower() in NUMBERS else text
    return row


def _number(column: str, text: str, delimiter: str) -> float:
    try:
        return float(text.replace(",", ".") if delimiter == ";" else text)
    except ValueError:
        raise bad_json(f"{column} is {text[:40]!r}", "a number") from None


class _Lines:
    """Lines of a file for the csv reader, with the way back to the second line of a row that went wrong.

    Few who write tables with tabs put texts in quotes. So a quote is a letter there where the row cannot be read with
    it as a mark, or where it would take other lines along that are whole rows.
    """

    def __init__(self, file: IO[bytes], offset: int, line: int, width: int = 0) -> None:
        self.file, self.offset, self.line, self.width = file, offset, line, width
        self._taken: list[bytes] = []
        self._size = 0
        self._back: deque[bytes] = deque()
        self.ended = False
        self._look()

    def row(self, delimiter: str) -> list[str]:
        """The cells of the next row; none for a blank line. Raises DataError, and then has passed one line."""
        self._taken, self._size = [], 0
        csv.field_size_limit(MAX_ROW)
        try:
            cells = next(csv.reader(self, delimiter=delimiter, strict=True, skipinitialspace=True), [])
            if len(self._taken) > 1 and all(self._is_row(line, delimiter) for line in self._taken):
                raise csv.Error("quotes that are letters")
        except csv.Error as error:
            self._back.extendleft(reversed(self._taken[1:]))
            self._taken = self._taken[:1]
            if self._taken and self._is_row(self._taken[0], delimiter):
                return self._taken[0].decode("utf-8", "surrogateescape").rstrip("\r\n").split(delimiter)
            known = {"unexpected end of data": "a quote never closes"}
            what = known.get(str(error), str(error))
            raise bad_json(f"not a row of a table: {what}", "texts in quotes, a quote inside a text doubled") from error
        finally:
            self.offset += sum(map(len, self._taken))
            self.line += len(self._taken)
            self._look()
        return cells if any(cell.strip() for cell in cells) else []

    def _is_row(self, line: bytes, delimiter: str) -> bool:
        """Whether a line of a table with tabs is a row by itself, its quotes taken as letters."""
        return delimiter == "\t" and self.width == line.count(b"\t") + 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._size > MAX_ROW or len(self._taken) >= MAX_LINES:
            raise csv.Error("a quote never closes, or the row is too long")
        raw = self._back.popleft() if self._back else self.file.readline(MAX_ROW)
        if not raw:
            raise StopIteration
        self._taken.append(raw)
        self._size += len(raw)
        return raw.decode("utf-8", "surrogateescape")

    def _look(self) -> None:
        if not self._back:
            raw = self.file.readline(MAX_ROW)
            self._back.extend([raw] if raw else [])
        self.ended = not self._back
