"""Nothing is promised that nobody uses: every hook of a contract has a caller, every field of a recipe a reader."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from torch import nn

from mmtune import other_models, params, recipe
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


CALLED = {
    "checkpoint/foreign": r"foreign$|^found$|^reader$|importer\(kind\)$",
    "connectors": r"connector$",
    "data/formats": r"(reader|format)$|formats\[.+\]$",
    "data/orders": r"order$",
    "encoders": r"encoder$|^module$",
    "eval/tasks": r"task$",
    "experts": r"expert$",
    "fusion": r"fusion$",
    "llm": r"llm$|^module$",
    "objectives": r"objective$|objectives\[.+\]$|^(holder|holders\[name\])$|^type\(objective\)$",
    "optimizers": r"(optimizer|entry)$|^registry.find\('optimizers', .+\)$",
    "tuners": r"tuner$|^registry.find\('tuners', .+\)$",
    "StepCallback": r"callback$|^(holder|one)$|^holders\[name\]$",
    "Tokenizer": r"tokenizer$",
}
"""Room, or another class of a room's base, to the names by which the program calls one: a hook of a common name, such
as `check`, is called by a caller of this room's only."""
CLASSES = {room: (room, BASES[room].Contract) for room in ROOMS} | {
    "StepCallback": ("tuners", BASES["tuners"].StepCallback),
    "Tokenizer": ("llm", BASES["llm"].Tokenizer),
}
"""What the room, or another class, is: its folder and the class."""


def hooks(cls: type) -> list[str]:
    """Public functions, properties and attributes that a contract names itself."""
    methods = [n for n, v in vars(cls).items() if inspect.isfunction(v) or isinstance(v, property | classmethod)]
    return sorted(n for n in {*methods, *vars(cls).get("__annotations__", {})} - {"Config"} if n[0] != "_")


Use = tuple[Path, str, str, tuple[str, ...]]


def calls(name: str) -> list[tuple[str, Use]]:
    """Hook and place of every call that may be one of a class's hooks. A call by `self` is one within the room, unless
    a function of the same name hands it on: that asks for what nobody may have asked for."""
    room, cls = CLASSES[name]
    wanted, known, own = re.compile(CALLED[name]), {*hooks(cls)}, PACKAGE / room
    uses_ = [use for use in USES if use[1] in known]
    return [
        (hook, use)
        for use in uses_
        for path, hook, of, inside in [use]
        if wanted.search(of) or (of == "self" and own in path.parents and hook not in inside)
    ]


def without_caller(name: str, called: Iterable[str]) -> list[str]:
    """Hooks of a class that are not among those called; torch calls `forward` of a module."""
    cls = CLASSES[name][1]
    others = {*called} | ({"forward"} if issubclass(cls, nn.Module) else set())
    return [hook for hook in hooks(cls) if hook not in others]


@pytest.mark.parametrize("name", CLASSES)
def test_every_hook_of_a_contract_has_a_caller(name: str) -> None:
    assert without_caller(name, (hook for hook, _ in calls(name))) == []


def test_no_room_is_forgotten() -> None:
    assert set(CALLED) == set(CLASSES) >= {*ROOMS}


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
    "GradientSection": r"(gradient|settings)$",
    "OtherModel": r"section$|models\[\w+\]$",
    "ParameterGroup": r"(group|settings|self|groups\[\w+\])$",
}
"""Section to the names by which the program calls one, so that a field of another thing is not taken for a reader."""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_recipe_has_a_reader(section: str) -> None:
    """What checks a field is no reader: private functions of the file that describes it do not count."""
    cls = next(getattr(home, section) for home in (recipe, params, other_models) if hasattr(home, section))
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


ASKING = re.compile(r"(^|\.)(llm|model)$")


def asked_whether_there() -> Iterator[str]:
    """Calls of hasattr and getattr on a language model or a whole model: what a contract does not promise."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            asks = isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr")
            if asks and ASKING.search(ast.unparse(node.args[0])):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"


def test_a_model_has_what_its_neighbours_use() -> None:
    """The contract of language models, or `require`, says what there is; nobody tries."""
    assert list(asked_whether_there()) == []


@pytest.mark.parametrize(
    ("name", "hook", "caller"),
    [
        ("connectors", "calibrate", "model.py"),
        ("connectors", "check", "model.py"),
        ("fusion", "check", "model.py"),
        ("objectives", "check", "training/setup.py"),
        ("objectives", "begin", "training/setup.py"),
        ("objectives", "counts", "training/terms.py"),
        ("eval/tasks", "judge", "eval/run.py"),
        ("StepCallback", "before", "training/callbacks.py"),
        ("StepCallback", "updated", "training/step.py"),
    ],
)
def test_a_hook_whose_caller_goes_is_seen(name: str, hook: str, caller: str) -> None:
    """As `calibrate` was: every connector handed it on, and nobody began. A hook of another room with the same name is
    no caller."""
    left = [one for one, use in calls(name) if use[:2] != (PACKAGE / caller, hook)]
    assert without_caller(name, left) == [hook]


def test_a_field_without_a_reader_is_seen() -> None:
    """A field that only its own check reads."""
    tree = ast.parse("class Recipe:\n    def _check(self):\n        return self.run.unread\n")
    assert [inside for name, _, inside in uses(tree) if name == "unread"] == [("_check",)]
