"""How the program that answers and the process of an expert talk: frames of bytes, JSON inside, nothing pickled.

A frame is its length (8 bytes, big-endian) and so many bytes. Asked: one frame of facts, one of the medium. Answered:
one frame. The limits are applied where evidence is made, so that a flood never leaves the expert's process, and again
where it is read, because the output of that process is not trusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, BinaryIO

from mmtune.errors import ShapeError
from mmtune.experts.base import Evidence

MAX_ITEMS = 200
"""Most pieces of evidence that are accepted."""
MAX_TEXT = 2_000
"""Most characters of one piece."""
MAX_CHARS = 20_000
"""Most characters of all pieces."""
MAX_REPLY = 1 << 20
"""Most bytes of an answer; the limits above keep well below it."""


class WireError(Exception):
    """The message is no answer; the text says why."""


class Told(WireError):
    """An answer that tells in good order what went wrong."""


def write(file: BinaryIO, data: bytes) -> None:
    """Write one frame. Raises OSError or ValueError when the reader is gone."""
    file.write(len(data).to_bytes(8, "big"))
    file.write(data)
    file.flush()


def read(file: BinaryIO, most: int | None = None) -> bytes | None:
    """One frame, or none at the end of the stream. Raises WireError for one above `most` bytes or cut short."""
    head = file.read(8)
    if len(head) < 8:
        return None
    length = int.from_bytes(head, "big")
    if most is not None and length > most:
        raise WireError(f"it said {length} bytes, more than {most}")
    data = file.read(length)
    if len(data) < length:
        raise WireError("it ended in the middle of what it said")
    return data


def gather(found: Iterable[Any]) -> tuple[list[Evidence], bool]:
    """Evidence within the limits, and whether something was cut off. Raises TypeError for other values."""
    kept: list[Evidence] = []
    room, cut = MAX_CHARS, False
    for one in found:
        if not isinstance(one, Evidence):
            raise TypeError(f"it gave a {type(one).__name__} instead of Evidence")
        if len(kept) == MAX_ITEMS or room <= 0:
            return kept, True
        text = one.text[: min(MAX_TEXT, room)]
        cut = cut or len(text) < len(one.text)
        room -= len(text)
        kept.append(Evidence(text, one.score, one.span, one.box))
    return kept, cut


def pack(found: Iterable[Evidence], cut: bool) -> bytes:
    """An answer as JSON; ASCII, so that half a surrogate pair is text like any other."""
    return json.dumps({"evidence": [one.record() for one in found], "cut": cut}, allow_nan=False).encode()


def answer(data: bytes, *keys: str) -> dict[str, Any]:
    """An answer with exactly these keys. Raises WireError, or Told."""
    try:
        tree = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise WireError(f"it said something that is no evidence: {' '.join(str(error).split())[:200]}") from error
    if isinstance(tree, dict) and isinstance(tree.get("error"), str):
        raise Told(" ".join(tree["error"].split())[:300])
    if not isinstance(tree, dict) or set(tree) != set(keys):
        raise WireError("it said something that is no evidence")
    return tree


def unpack(data: bytes) -> tuple[tuple[Evidence, ...], bool]:
    """The evidence of an answer, and whether it was cut. Raises WireError, or Told."""
    tree = answer(data, "evidence", "cut")
    try:
        if not isinstance(tree["cut"], bool):
            raise WireError("it said something that is no evidence")
        if not isinstance(tree["evidence"], list) or len(tree["evidence"]) > MAX_ITEMS:
            raise WireError("it said something that is no list of evidence")
        found = tuple(Evidence.read(one) for one in tree["evidence"])
    except (ValueError, RecursionError, ShapeError) as error:
        raise WireError(f"it said something that is no evidence: {' '.join(str(error).split())[:200]}") from error
    if sum(len(one.text) for one in found) > MAX_CHARS:
        raise WireError("its message is longer than the limit")
    return found, tree["cut"]


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number" if not math.isfinite(float(name)) else name)
