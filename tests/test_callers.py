"""Nothing is promised that nobody uses: every hook of a contract has a caller, every field of a recipe a reader."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtune import params, recipe
from mmtune.config import Config

PACKAGE = Path(__file__).resolve().parent.parent / "mmtune"
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py") if path.parent.name != "testing"
}
"""Checks of contracts call every hook, so they are no callers."""
BASES = {
    room: importlib.import_module(f"mmtune.{room.replace('/', '.')}.base")
    for room in sorted(path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("base.py"))
}
ROOMS = [room for room, base in BASES.items() if hasattr(base, "Contract")]


def uses(node: ast.AST, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every attribute that is read, as (name, what it is read of, functions around it)."""
    if isinstance(node, ast.FunctionDef):
        inside = (*inside, node.name)
    if isinstance(node, ast.Attribute):
        yield node.attr, ast.unparse(node.value), inside
    named = isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1
    if named and isinstance(node.args[1], ast.Constant):
        yield node.args[1].value, ast.unparse(node.args[0]), inside
    for child in ast.iter_child_nodes(node):
        yield from uses(child, inside)


USES = [(path, *use) for path, tree in TREES.items() for use in uses(tree)]


def hooks(room: str) -> list[str]:
    """Public functions and properties that the contract of a room names itself."""
    found = vars(BASES[room].Contract).items()
    return [n for n, v in found if n[0] != "_" and (inspect.isfunction(v) or isinstance(v, property | classmethod))]


@pytest.mark.parametrize("room", ROOMS)
def test_every_hook_of_a_contract_has_a_caller(room: str) -> None:
    """A call from a function of the same name hands on what nobody may have asked for: it does not count."""
    called = {name for _, name, _, inside in USES if name not in inside}
    assert [hook for hook in hooks(room) if hook not in called] == []


SECTIONS = {
    "ModelSection": r"(^|\.)(model|section|_section)$",
    "BranchSection": r"(branch|section|one|branches\[\w+\])$",
    "StreamSection": r"(stream|section|chosen|self|streams\[\w+\])$",
    "HeldOutSection": r"held$",
    "StageSection": r"stage$",
    "ScheduleSection": r"(schedule|common)$",
    "RunSection": r"(^|\.)(run|section)$",
    "EvalSection": r"(eval|_section|section)$",
    "ChatSection": r"(^|\.)(chat|settings|section)$",
    "Recipe": r"(recipe|loaded|made|told|settled|self|asked)$",
    "ParameterGroup": r"(group|settings|self|groups\[\w+\])$",
}
"""Section to the names by which the program calls one, so that a field of another thing is not taken for a reader."""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_recipe_has_a_reader(section: str) -> None:
    """What checks a field is no reader: private functions of the file that describes it do not count."""
    cls = getattr(recipe, section, None) or getattr(params, section)
    home = Path(inspect.getfile(cls))
    wanted = re.compile(SECTIONS[section])
    read = {
        name
        for path, name, of, inside in USES
        if wanted.search(of) and not (path == home and any(function.startswith("_") for function in inside))
    }
    assert [field for field in cls.model_fields if field not in read] == []


def test_no_section_is_forgotten() -> None:
    classes = {name: cls for name, cls in vars(recipe).items() if inspect.isclass(cls) and issubclass(cls, Config)}
    assert len(ROOMS) >= 8
    assert {name for name, cls in classes.items() if cls.__module__ == recipe.__name__} - {"Card"} <= {*SECTIONS}


def test_a_hook_without_a_caller_is_seen() -> None:
    """A hook that every connector hands on, and that nobody calls first."""
    tree = ast.parse("class A:\n    def calibrate(self, rms):\n        self.scale.calibrate(rms)\n")
    assert [name for name, _, inside in uses(tree) if name == "calibrate" and name not in inside] == []
