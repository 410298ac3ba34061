"""JSON files beside weights: read whole or refused, never endless, never half understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.errors import CheckpointError

MOST = 256 << 20
"""Bytes of the largest; tokenizers of large vocabularies take 20 MB."""
MOST_VALUES = 20_000_000
"""Values in all, counted by their commas."""


def read(path: Path, most: int = MOST) -> dict[str, Any]:
    """A JSON object from a plain file.

    Raises CheckpointError: no file, a device or an endless one, one that is too large or nested too deep, no object, a
    key that comes twice, or NaN.
    """
    try:
        text = disk.read_text(path, most)
        if text.count(",") > MOST_VALUES:
            raise ValueError(f"{text.count(','):,} values, and at most {MOST_VALUES:,} are read")
        tree = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}", "a JSON file", "check that the folder is complete") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}", "a JSON object", "copy the file again")
    return tree


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} comes twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN, which is no setting")
    return float(name.replace("Infinity", "inf"))
