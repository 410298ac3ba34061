"""Rows of CSV and TSV with a line of column names. Lines are those of an editor, also where texts have breaks."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from mmtune.data.convert import strict
from mmtune.data.convert.base import Raw, bad_json
from mmtune.errors import DataError, UsageError

MAX_ROW = 16 << 20
"""Most bytes of one row."""
MAX_LINES = 10_000
"""Most lines of one row. A quote that never closes is noticed there, or at the end of the file."""
NUMBERS = ("fps", "frame_rate", "weight", "loss_weight", "loss_scale")
"""Columns that are numbers in a record."""


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
    file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    lines = _Lines(file, file.tell(), 1)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    delimiter = "\t" if b"\t" in first else ";" if first.count(b";") > first.count(b",") else ","
    try:
        row: list[str] = []
        while not row and not lines.ended:
            row = lines.row(delimiter)
        columns = tuple(column.strip() for column in row)
        for column in columns:
            strict.decode(column.encode("utf-8", "surrogateescape"))
        if len(set(columns)) != len(columns):
            raise bad_json(f"a column name comes twice: {', '.join(columns)}", "a name of its own for each column")
    except DataError as error:
        raise UsageError(f"{name}: {error.seen}", error.expected or "a first line of column names") from error
    if not any(columns):
        raise UsageError(f"{name} is empty", "a first line of column names, as video,caption")
    return Start(columns, delimiter, lines.offset, lines.line)


def read(file: IO[bytes], start: Start) -> Iterator[Raw]:
    """Rows from `start` on. A row that cannot be read is a fault, and reading goes on at the line after its first."""
    file.seek(start.offset)
    lines = _Lines(file, start.offset, start.line)
    number = start.number
    while not lines.ended:
        offset, line = lines.offset, lines.line
        row, fault = None, None
        try:
            cells = lines.row(start.delimiter)
            if not cells:
                continue
            row = _named(cells, start.columns)
        except DataError as error:
            fault = error
        yield Raw(number, line, offset, row, fault)
        number += 1


def _named(cells: list[str], columns: tuple[str, ...]) -> dict[str, Any]:
    """Cells by column. Raises DataError."""
    if len(cells) > len(columns):
        seen = f"{len(cells)} cells in a table of {len(columns)} columns"
        raise bad_json(seen, "as many cells as columns", "put quotes around a text that has commas in it")
    row: dict[str, Any] = dict.fromkeys(columns)
    for column, cell in zip(columns, cells, strict=False):
        text = strict.decode(cell.encode("utf-8", "surrogateescape"))
        if text.strip():  # an empty cell says nothing
            row[column] = _number(column, text) if column.lower() in NUMBERS else text
    return row


def _number(column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise bad_json(f"{column} is {text[:40]!r}", "a number") from None


class _Lines:
    """Lines of a file for the csv reader, with the way back to the second line of a row that went wrong."""

    def __init__(self, file: IO[bytes], offset: int, line: int) -> None:
        self.file, self.offset, self.line = file, offset, line
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
            cells = next(csv.reader(self, delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            self._back.extendleft(reversed(self._taken[1:]))
            self._taken = self._taken[:1]
            known = {"unexpected end of data": "a quote never closes"}
            what = known.get(str(error), str(error))
            raise bad_json(f"not a row of a table: {what}", "texts in quotes, a quote inside a text doubled") from error
        finally:
            self.offset += sum(map(len, self._taken))
            self.line += len(self._taken)
            self._look()
        return cells if any(cell.strip() for cell in cells) else []

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
