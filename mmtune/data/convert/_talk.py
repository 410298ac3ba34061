"""Messages between this program and the process that reads tables: a head of JSON, then bytes; nothing is pickled.

A message is two lengths (8 bytes each, big-endian), that of its head and that of its bytes, and then both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, Any

from mmtune.data import _json
from mmtune.errors import DataError

HEAD = 16
MOST = 1 << 30
"""Most bytes after a head: those of a row, or the part of a file that is asked for."""
MAX_HEAD = 256 << 20
"""Most bytes of a head."""


def send(file: IO[bytes], head: dict[str, Any], data: bytes = b"") -> None:
    """Write one message. Raises OSError or ValueError when the reader is gone."""
    text = json.dumps(head).encode()
    file.write(len(text).to_bytes(8, "big") + len(data).to_bytes(8, "big") + text)
    file.write(data)
    file.flush()


def receive(read: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """One message, of which the bytes come by `read`, each time all that are asked for.

    Raises EOFError where it is too long, and DataError bad_json where its head has too much in it; the next message can
    be read all the same.
    """
    lengths = read(HEAD)
    head, data = (int.from_bytes(lengths[index : index + 8], "big") for index in (0, 8))
    if head > MAX_HEAD or data > MOST:
        raise EOFError(f"it says {head + data} bytes, more than are listened to")
    text, behind = read(head), read(data)
    return _json.tree(text, "the row", MAX_HEAD), behind


def fault(error: Exception) -> dict[str, Any]:
    """What is said where there is no row."""
    if isinstance(error, DataError):
        return {"seen": error.seen, "expected": error.expected, "hint": error.hint}
    return {"seen": "it takes more memory than it may" if isinstance(error, MemoryError) else str(error)}


def without_bytes(row: Any) -> tuple[Any, list[list[Any]], bytes]:
    """A row as JSON has it, where the bytes in it belong (a way of keys and places, a size), and these bytes.

    Raises ValueError for a row of too many values, texts or bytes.
    """
    spans: list[list[Any]] = []
    found: list[bytes] = []
    values = size = 0

    def walk(value: Any, way: list[Any]) -> Any:
        nonlocal values, size
        values += 1
        size += len(value) if isinstance(value, (str, bytes)) else 0
        if values > _json.MAX_VALUES or size > MOST:
            raise ValueError(f"more than {_json.MAX_VALUES} values or {MOST} bytes in a row")
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        if isinstance(value, dict):
            return {str(key): walk(one, [*way, str(key)]) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(one, [*way, index]) for index, one in enumerate(value)]
        if isinstance(value, bytes):
            spans.append([way, len(value)])
            found.append(value)
            return None
        return str(value)

    return walk(row, []), spans, b"".join(found)


def with_bytes(row: dict[str, Any], spans: list[list[Any]], data: bytes) -> dict[str, Any]:
    """The row again. Raises LookupError, TypeError and ValueError where this is not what `without_bytes` makes."""
    at = 0
    for way, size in spans:
        *outer, last = way
        holder: Any = row
        for step in outer:
            holder = holder[step]
        holder[last] = data[at : at + size]
        at += size
    return row
