"""Values of every kind, in any field of any published JSON file and in any option: imported, or refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmtune import registry
from mmtune.checkpoint import convert
from mmtune.errors import MmtuneError
from tests.checkpoint.foreign.made import KINDS, make, unpickled

ODD = [
    None, True, 0, -1, 1.5, float("nan"), float("-inf"), 1e15, 10**15, 2**63, 10**400, "", "1e-5", "\0", "\ud800",
    "x" * 100_000, [], [None], [[1], 2], {}, {"a": 1}, "../../elsewhere", "https://me:secret@host/a",
]  # fmt: skip
CASES = 5
"""Of each layout: enough that a fault of a kind shows, few enough to wait for."""
MOST = 60
"""Entries of a table that has one for each token: those at its ends."""


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values of a tree."""
    if path:
        yield path
    entries = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    for key, value in entries if len(entries) <= MOST else entries[:3] + entries[-3:]:
        yield from places(value, (*path, key))


def odd(tree: Any, path: tuple[Any, ...], value: Any) -> str:
    """The text of a tree with another value in one place."""
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(tree)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_values_are_refused_by_name_or_imported(kind: str, tmp_path: Path) -> None:
    made = unpickled(make(kind, tmp_path / "published"))
    chance = random.Random(kind)
    convert.import_checkpoint(kind, made.words, tmp_path / "unchanged", made.options, made.changes)
    files = sorted((tmp_path / "published").rglob("*.json"))
    names = list(registry.find(convert.ROOM, kind).Config.model_fields)
    for case in range(CASES):
        value, options, said = chance.choice(ODD), list(made.options), ""
        if files and case:
            file = chance.choice(files)
            text = file.read_text()
            path = chance.choice(list(places(json.loads(text))))
            file.write_text(odd(json.loads(text), path, value))
            said = f"{file.name} {path}"
        else:
            name = chance.choice(names)
            options = [*(one for one in options if not one.startswith(f"{name}=")), f"{name}={json.dumps(value)}"]
            said = f"option {name}"
        try:
            convert.import_checkpoint(kind, made.words, tmp_path / f"run{case}", options, made.changes)
        except MmtuneError as error:
            assert error.seen and error.expected and error.hint, f"{said}, {value!r:.60}: {error}"
            assert "secret" not in str(error)
            assert not list(tmp_path.glob(f"*run{case}*")), "something is left of it"
        except Exception as error:
            pytest.fail(f"{said}, {value!r:.60}: {type(error).__name__}: {error}")
        if files and case:
            file.write_text(text)
