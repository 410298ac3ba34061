"""JSON from elsewhere: an object read in time that grows with its size, and in memory that has a limit.

Unused fields are not checked: a NaN, an endless number or one of many digits is a float that is not finite, and
the reader of that field refuses it. What could be read in two ways is refused: a key that comes twice in an object.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from mmtune.errors import DataError, Reason

MAX_BYTES = 16 << 20
"""Largest JSON or text member read."""
MAX_DEPTH = 64
"""Deepest nesting."""
MAX_VALUES = 1_000_000
"""Most values, those of all lists and objects together; each takes about 100 bytes of memory."""
MAX_DIGITS = 400
"""Digits of the longest whole number; longer ones take time that grows with their square, and no field means one."""
# The next mark outside of strings, or the end. A string that is cut off ends with the bytes. So there is a match
# wherever the search begins, and no byte is looked at twice.
_MARK = re.compile(rb'(?:[^"\[\]{},]++|"(?:[^"\\]++|\\.?)*+(?:"|\Z))*+([\[\]{},]|\Z)', re.DOTALL)


def tree(raw: bytes, origin: str, most: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object. Numbers that are not finite, or too long, come as floats that are not finite.

    Args:
        most: most bytes.

    Raises DataError bad_json, or bad_text where it is not UTF-8.
    """
    if len(raw) > most:
        raise DataError(Reason.bad_json, f"{origin}: {len(raw)} bytes of JSON", f"at most {most}")
    try:
        source = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(Reason.bad_text, f"{origin}: byte {error.start} is not UTF-8", "UTF-8 text") from error
    try:
        _measure(raw)
        value = json.loads(source, object_pairs_hook=_object, parse_int=_int)
    except (ValueError, RecursionError) as error:
        raise DataError(Reason.bad_json, f"{origin}: {error}", "a JSON object") from error
    if not isinstance(value, dict):
        raise DataError(Reason.bad_json, f"{origin} holds a {type(value).__name__}", "a JSON object")
    return value


def absent(value: Any) -> bool:
    """Whether a field says nothing: null, or the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _measure(raw: bytes) -> None:
    """Refuse JSON that is too deep or has too many values, before it is built. Raises ValueError."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH and raw.count(b",") < MAX_VALUES - MAX_DEPTH:
        return
    depth, values = 0, 0
    for found in _MARK.finditer(raw):
        mark = found[1]
        if mark in (b"]", b"}"):
            depth -= 1
            continue
        values += 1
        depth += mark in (b"[", b"{")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} comes twice")
            seen.add(key)
    return value


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else math.copysign(math.inf, -1 if digits[0] == "-" else 1)
