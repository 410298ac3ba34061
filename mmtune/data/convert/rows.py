"""Rows of parquet and of Arrow files, read in a process of its own that has a limit of memory and of time.

One process serves one after another of what is asked; where it dies, takes too long or says what is no row, that is a
fault of the rows that were asked for, and the next question starts another.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import wait
from typing import IO, Any

from mmtune.children import Child
from mmtune.data.convert import _talk
from mmtune.data.convert.base import Raw, bad_json
from mmtune.errors import DataError, UsageError

MEMORY = 4 << 30
"""Bytes that the process may allocate beyond its size at the start."""
SECONDS = 120.0
"""Most seconds that the answers to one question are waited for."""
WHOLE = "a whole parquet or Arrow file"
_CHUNK = 1 << 20
_readers: dict[int, _Reader] = {}
"""The one of this process, by its number: a fork of this process has none yet."""


def count(file: IO[bytes], name: str) -> int:
    """Rows of a file. Raises DataError for a file that cannot be read, and UsageError where nothing reads any."""
    with _Question(file, {"name": name}) as question:
        said, _ = question.answer()
        if "rows" in said:
            return int(said["rows"])
        raise _fault(said)


def read(file: IO[bytes], row: int, number: int, count: int) -> Iterator[Raw]:
    """So many rows from `row` (of the file, from 0) on, which are numbered from `number` on; what cannot be read is a
    fault."""
    end = number + count
    with _Question(file, {"row": row, "number": number, "count": count}) as question:
        fault = bad_json("there are fewer rows than the file promises", WHOLE)
        while number < end:
            try:
                said, data = question.answer()
                if "ended" in said:
                    break
                fault = _fault(said) if "row" not in said else fault
                found = _talk.with_bytes(said["row"], said["bytes"], data) if "row" in said else None
            except DataError as error:
                fault = error
                break
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                found, fault = None, bad_json(f"the row cannot be read: {error}", WHOLE)
            yield Raw(number, row=found, fault=None if found is not None else fault)
            number += 1
        for left in range(number, end):
            yield Raw(left, fault=fault)


def close() -> None:
    """End the process that reads."""
    if (reader := _readers.pop(os.getpid(), None)) is not None:
        reader.child.end()


def _fault(said: dict[str, Any]) -> DataError:
    seen, expected, hint = (str(said.get(key) or "") for key in ("seen", "expected", "hint"))
    return bad_json(seen or "nothing could be read", expected or WHOLE, hint)


class _Reader:
    """A process and its requests."""

    def __init__(self) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            seen = "a parquet or Arrow file, and no package that reads it"
            raise UsageError(seen, "pyarrow", "pip install 'mmtune[parquet]'")
        self.child = Child("mmtune.data.convert._columns_child")
        self.tell({"memory": MEMORY})

    def tell(self, head: dict[str, Any], data: bytes = b"") -> None:
        assert self.child.process.stdin is not None
        _talk.send(self.child.process.stdin, head, data)

    def hear(self, until: float, size: int) -> bytes:
        """So many bytes. Raises EOFError where it has ended, and TimeoutError."""
        assert self.child.process.stdout is not None
        pipe, parts = self.child.process.stdout.fileno(), bytearray()
        while len(parts) < size:
            left = until - time.monotonic()
            if left <= 0 or not wait([pipe], left):
                raise TimeoutError
            part = os.read(pipe, min(_CHUNK, size - len(parts)))
            if not part:
                raise EOFError("it ended")
            parts += part
        return bytes(parts)


def _reader() -> _Reader:
    """The process that reads, started if none is alive."""
    there = _readers.get(os.getpid())
    if there is None or there.child.process.poll() is not None:
        close()
        there = _readers[os.getpid()] = _Reader()
    return there


class _Question:
    """One question: the pieces of the file that the process asks for are given to it until it answers.

    The process is ended where its answer was not heard to the end.
    """

    def __init__(self, file: IO[bytes], asked: dict[str, Any]) -> None:
        self.file, self.left = file, SECONDS
        self.reader = _reader()
        self.size = file.seek(0, os.SEEK_END)
        self.asked: dict[str, Any] | None = {**asked, "size": self.size}
        self.open = asked.get("count", 1)
        """Answers that are still to come."""

    def __enter__(self) -> _Question:
        return self

    def __exit__(self, *_: object) -> None:
        if self.open:
            close()

    def answer(self) -> tuple[dict[str, Any], bytes]:
        """What it says next that is no question for a piece of the file. Raises DataError."""
        try:
            if self.asked is not None:
                self.reader.tell(self.asked)
                self.asked = None
            while True:
                begun = time.monotonic()
                try:
                    said, data = _talk.receive(partial(self.reader.hear, begun + self.left))
                except DataError as error:  # of this row alone
                    said, data = _talk.fault(error), b""
                self.left -= time.monotonic() - begun
                if "offset" not in said:
                    self.open = 0 if "ended" in said else self.open - 1
                    return said, data
                self.file.seek(said["offset"])
                self.reader.tell({}, self.file.read(min(said["size"], _talk.MOST)))
        except TimeoutError:
            seen = f"reading takes longer than {SECONDS:g} s; nothing after this row is read"
            raise bad_json(seen, WHOLE, "--per-shard with fewer records reads less at a time") from None
        except (EOFError, OSError, ValueError) as error:
            seen = f"what reads it has ended ({error}); nothing after this row can be read"
            raise bad_json(seen, f"{WHOLE} of which a part fits into {MEMORY >> 30} GiB of memory") from error
