"""Records of JSON and of JSON lines, found by their brackets without parsing their content.

A file is gone through in chunks, so its size does not matter. Line numbers are those of an editor. A record whose
brackets or quotes do not close is one fault; reading continues at the next line that begins as it began. Where there is
none (all in one line), what follows is that fault, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO

from mmtune.data.convert import strict
from mmtune.data.convert.base import Raw, bad_json
from mmtune.errors import DataError

CHUNK = 1 << 20
MAX_RECORD = strict.MAX_BYTES
"""Most bytes of one record."""
MAX_NESTED = 512
"""Deepest brackets that are followed; less is refused when a record is read."""
WRAPPERS = ("data", "annotations", "records", "samples", "items", "examples", "rows", "train", "conversations_list")
"""Fields of an outermost object that may hold the list of records."""
_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"|[\[\]{}\n"]')
_SPACE = re.compile(rb"[\s,]*")
_SCALAR = re.compile(rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"|[^,\]\}\n\[\{"]+|.', re.DOTALL)
_CLOSES = {b"{": b"}", b"[": b"]"}


@dataclass(frozen=True)
class Start:
    """Where reading begins."""

    offset: int = 0
    line: int = 1
    number: int = 1
    lines: bool = False
    """Whether each line is read by itself."""
    inside: bool = False
    """Whether this is within a list of records."""
    wrapped: bool = False
    """Whether the list is a field of an object, so that its end is the end of all records."""


@dataclass(frozen=True)
class Span:
    """The text of a record, not yet read."""

    start: Start
    text: bytes
    fault: str = ""


def start_of(file: IO[bytes], name: str) -> tuple[Start, str]:
    """How a file is to be read, and what that is called. `name` decides nothing but whether lines are expected.

    Raises UsageError for a file that is not in UTF-8.
    """
    head = begin(file)
    strict.check_encoding(head, name)
    bom = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    body = head[bom:].lstrip()
    lines = name.lower().endswith((".jsonl", ".ndjson", ".jsonlines"))
    if body[:1] != b"{" and not (lines and body[:1] not in (b"", b"[")):
        return Start(bom), "a JSON list" if body[:1] == b"[" else "JSON"
    first, _, rest = body.partition(b"\n")
    try:
        strict.loads(_line(first))
        whole = True
    except DataError:
        whole = False
    listed = wrapper(head, WRAPPERS)
    if listed is not None and not (whole and rest.strip()):
        at, key = listed
        return Start(at, head.count(b"\n", 0, at) + 1, wrapped=True), f"a JSON object with the list `{key}`"
    if whole or (lines and first.strip() != b"{"):
        return Start(bom, lines=True), "JSON lines"
    return Start(bom), "JSON objects"


def begin(file: IO[bytes]) -> bytes:
    """The beginning of a file."""
    file.seek(0)
    return file.read(CHUNK)


def wrapper(head: bytes, keys: Collection[str]) -> tuple[int, str] | None:
    """Where the list of records begins that is a field of the outermost object, and which of some fields it is."""
    depth, last, close = 0, b"", 0
    for token in _TOKEN.finditer(head):
        text = token[0]
        if text in (b"{", b"["):
            key = last[1:-1].decode("utf-8", "replace")
            between = head[close : token.start()].strip()
            follows = head[token.end() : token.end() + 64].lstrip()[:1]
            if text == b"[" and depth == 1 and between == b":" and key in keys and follows == b"{":
                return token.start(), key
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
        elif text != b"\n":
            last, close = text, token.end()
    return None


def read(file: IO[bytes], start: Start) -> Iterator[Raw]:
    """Records from `start` on, read as JSON objects; anything else becomes a fault."""
    yield from map(_judged, spans(file, start))


def whole(file: IO[bytes], start: Start, field: str) -> tuple[list[Raw], int]:
    """All records of a list and where it ends; None where the first of them lacks a field."""
    scanner = _Scanner(file, start)
    file.seek(start.offset)
    raws: list[Raw] = []
    for raw in map(_judged, scanner.run()):
        if not raws and field not in (raw.row or {}):
            return [], 0
        raws.append(raw)
    return raws, scanner.base + scanner.at


def _judged(span: Span) -> Raw:
    at = span.start
    try:
        if span.fault:
            raise bad_json(span.fault, "JSON records whose brackets and quotes close")
        row, fault = strict.loads(span.text), None
    except DataError as error:
        row, fault = None, error
    return Raw(at.number, at.line, at.offset, row, fault)


def spans(file: IO[bytes], start: Start) -> Iterator[Span]:
    """Records from `start` on, cut out and not read."""
    file.seek(start.offset)
    yield from _lines(file, start) if start.lines else _Scanner(file, start).run()


def _lines(file: IO[bytes], start: Start) -> Iterator[Span]:
    offset, line, number = start.offset, start.line, start.number
    while raw := file.readline(MAX_RECORD + 1):
        here = Start(offset, line, number, lines=True)
        length, fault = len(raw), ""
        if length > MAX_RECORD:
            fault = f"a line of more than {MAX_RECORD} bytes"
            while raw[-1:] != b"\n" and (raw := file.readline(CHUNK)):
                length += len(raw)
        text = _line(raw)
        offset, line = offset + length, line + 1
        if fault:
            yield Span(here, b"", fault)
        elif text.startswith(b"["):
            for span in _Scanner(io.BytesIO(text), Start()).run():
                yield Span(Start(here.offset, here.line, number, lines=True), span.text, span.fault)
                number += 1
            continue
        elif text:
            yield Span(here, text)
        else:
            continue
        number += 1


def _line(raw: bytes) -> bytes:
    """A line without blanks around it, and without the comma of a list that was cut into lines."""
    return raw.strip().removesuffix(b",").rstrip()


class _Scanner:
    """Goes through a file and cuts out what stands in its outermost list, or its outermost objects."""

    def __init__(self, file: IO[bytes], start: Start) -> None:
        self.file, self.start = file, start
        self.buffer, self.at = b"", 0
        self.base, self.line = start.offset, start.line
        self.inside = start.inside

    def run(self) -> Iterator[Span]:
        number = self.start.number
        while self._skip_blanks():
            char = self.buffer[self.at : self.at + 1]
            if char == b"[" and not self.inside:
                self.inside = True
                self.at += 1
                continue
            if char == b"]" and self.inside:
                if self.start.wrapped:
                    return
                self.inside = False
                self.at += 1
                continue
            here = Start(self.base + self.at, self.line, number, inside=self.inside, wrapped=self.start.wrapped)
            end, fault = self._record() if char in _CLOSES else self._scalar()
            text = self.buffer[self.at : end]
            yield Span(here, b"" if fault else text, fault)
            number += 1
            self.line += text.count(b"\n")
            self.at = end

    def _more(self) -> bool:
        """Read on; False at the end of the file. Reads as much as is held, so that long records cost no more."""
        chunk = self.file.read(max(CHUNK, len(self.buffer) - self.at))
        self.buffer += chunk
        return bool(chunk)

    def _skip_blanks(self) -> bool:
        """Pass over blanks and commas; False when nothing is left."""
        if self.at > CHUNK // 2:  # the only place that frees what was read
            self.base, self.buffer, self.at = self.base + self.at, self.buffer[self.at :], 0
        while True:
            found = _SPACE.match(self.buffer, self.at)
            end = found.end() if found else self.at
            self.line += self.buffer.count(b"\n", self.at, end)
            self.at = end
            if end < len(self.buffer) or not self._more():
                return end < len(self.buffer)

    def _scalar(self) -> tuple[int, str]:
        while True:
            found = _SCALAR.match(self.buffer, self.at)
            end = found.end() if found else self.at
            if end < len(self.buffer) or not self._more():
                return end, ""

    def _record(self) -> tuple[int, str]:
        """The end of the current record in the buffer, and its fault, if it has one."""
        position = self.at
        open_: list[bytes] = []
        while True:
            token = _TOKEN.search(self.buffer, position)
            if token is None or (token[0] == b'"' and self.buffer.find(b"\n", token.end()) < 0):
                position = token.start() if token else len(self.buffer)
                if len(self.buffer) - self.at > MAX_RECORD:
                    return self._resume(f"a record of more than {MAX_RECORD} bytes, or one that never closes")
                if not self._more():
                    return self._resume("the file ends inside this record: a bracket or a quote never closes")
                continue
            text, position = token[0], token.end()
            if text == b'"':
                return self._resume("a text in quotes is broken over lines, or a quote never closes")
            if text in _CLOSES:
                open_.append(_CLOSES[text])
                if len(open_) > MAX_NESTED:
                    return self._resume(f"nested more than {MAX_NESTED} deep")
            elif text in (b"}", b"]"):
                if open_.pop() != text:
                    return self._resume(f"a bracket closes with {text.decode()} that was opened otherwise")
                if not open_:
                    return self._whole(position)

    def _whole(self, end: int) -> tuple[int, str]:
        """Judges a record whose brackets close, but which may have others in it: a damaged one can swallow the next."""
        if not self._next_line().search(self.buffer, self.at, end):
            return end, ""
        text = self.buffer[self.at : end]
        try:
            strict.loads(text.decode("utf-8", "replace").encode())  # other letters are a fault of this record alone
        except DataError as error:
            return self._resume(error.seen)
        return end, ""

    def _next_line(self) -> re.Pattern[bytes]:
        """A line that begins with a bracket, as far in as this record began."""
        before = self.buffer[max(0, self.at - 256) : self.at].rpartition(b"\n")
        indent = re.escape(before[2]) if before[1] and not before[2].strip(b" \t") else rb"[ \t]?"
        return re.compile(rb"\n" + indent + rb"[\[{]")

    def _resume(self, fault: str) -> tuple[int, str]:
        """The end of a broken record, which is the next line that begins as it began."""
        line = self._next_line()
        position = self.at
        while True:
            found = line.search(self.buffer, position)
            if found:
                return found.end() - 1, fault
            position = max(self.at, len(self.buffer) - 512)
            if len(self.buffer) - self.at > MAX_RECORD or not self._more():
                return len(self.buffer), f"{fault}; nothing after it can be separated"
