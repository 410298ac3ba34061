"""Bytes of one record to a JSON object, and bytes of a file to the encoding that it has."""

from __future__ import annotations

import math
from typing import Any

from mmtune.data import _json
from mmtune.data.convert.base import Row, bad_text
from mmtune.errors import DataError, Reason, UsageError

MAX_BYTES = 256 << 20
"""Largest record; pictures may be in it as base64."""
_MARKS = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"),
          (b"\xfe\xff", "UTF-16"))  # fmt: skip


def check_encoding(head: bytes, name: str) -> None:
    """Refuse a text file in UTF-16 or UTF-32 as a whole, for all of it would be refused line by line.

    Raises UsageError.
    """
    found = next((kind for mark, kind in _MARKS if head.startswith(mark)), None)
    if found is None and len(head) > 3 and head[:256].count(0) * 3 >= len(head[:256]):
        found = "UTF-16"
    if found:
        raise UsageError(
            seen=f"{name} is text in {found}",
            expected="UTF-8, with or without a byte order mark",
            hint=f"iconv -f {found} -t UTF-8 {name} > new file",
        )


def decode(raw: bytes) -> str:
    """Strict UTF-8 without a byte order mark. Raises DataError bad_text."""
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise bad_text(
            f"byte 0x{raw[error.start]:02x} is not UTF-8; the file may be in Latin-1 or Windows-1252",
            hint="iconv -f WINDOWS-1252 -t UTF-8 FILE > new file",
        ) from error


def loads(raw: bytes) -> Row:
    """A JSON object; numbers that are not finite come as floats that are not. Raises DataError: bad_text, bad_json."""
    try:
        return _json.tree(raw, "the record", MAX_BYTES)
    except DataError as error:
        if error.reason == Reason.bad_text:
            decode(raw)  # its message says more
        raise


def jsonable(value: Any, lost: list[int]) -> Any:
    """A value of a table as JSON: dates as text; of bytes only their number, which also goes to `lost`."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): jsonable(one, lost) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(one, lost) for one in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        lost.append(len(value))
        return f"{len(value)} bytes, left out"
    return str(value)


def finite(value: Any) -> Any:
    """A value in which null stands for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
