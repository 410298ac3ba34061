"""Names that the code had before, and where each would be an old one again.

A name that another room uses in its plain sense (`clip` of a video, `kind` of a medium) is old in some files or forms
only: as any identifier, as a function, as a field of a class, or as a module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Old:
    """Names, the form in which they count (`any`, `def`, `field`, `module`), and a pattern of the files they are in."""

    names: str
    form: str = "any"
    files: str = r"(mmtune|tools|tests)/"


_TRAINING = r"mmtune/train(ing)?/"
_MODEL = r"mmtune/((model|processor|prompt|types|generate)\.py|fusion/|llm/|connectors/|encoders/)"
OLD = (
    Old("takes_places attendant attendants Attendant sites wakes Extra soft checkpointing shelf _shelf carry"),
    Old("team Team Pace keeper Keeper saver Saver pulse Pulse blame Voice"),
    Old("places", files=_MODEL),
    Old("places carry _given", "module"),
    Old("Batch.frames Features.frames", "field", r"mmtune/types\.py"),
    Old("extras", files=_MODEL),
    Old("owners factors voice Watch watch", files=_TRAINING),
    Old("keeper saver pulse blame watch cut team", "module", r"mmtune/"),
    Old("take give drop tell hand", "def", rf"({_TRAINING}|mmtune/data/(swap|exchange)\.py)"),
    Old("controls control _control", "any", r"mmtune/(llm/|processor\.py|prompt\.py)"),
    Old("blank nothing", "any", r"mmtune/(model\.py|processor\.py|fusion/|recipe\.py)"),
    Old("moments spoken", "any", r"mmtune/(media/|processor\.py|prompt\.py)"),
    Old("kind floor clip start turns", "field", r"mmtune/recipe\.py"),
    Old("learn", files=r"mmtune/"),
    Old("train", "module", r"mmtune/train/"),
)


def identifiers(path: Path, text: str) -> Iterator[tuple[str, str, int]]:
    """Each identifier of a file as (name, form, line); the file itself and its folder are modules."""
    yield path.stem, "module", 1
    yield path.parent.name, "module", 1
    tree = ast.parse(text)
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                yield name, "any", node.lineno
            case ast.Attribute(attr=name):
                yield name, "any", node.end_lineno or node.lineno
            case ast.arg(arg=name):
                yield name, "any", node.lineno
            case ast.keyword(arg=str(name)):
                yield name, "any", node.value.lineno
            case ast.FunctionDef(name=name):
                yield name, "def", node.lineno
            case ast.ClassDef(name=name, body=body):
                yield name, "def", node.lineno
                for item in body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        yield item.target.id, "field", item.lineno
                        yield f"{name}.{item.target.id}", "field", item.lineno
            case ast.alias(name=name, asname=other):
                yield other or name.rpartition(".")[2], "any", node.lineno


def left(root: Path, files: list[Path]) -> list[str]:
    """Old names that are still there, as `file:line name`, sorted."""
    found: set[tuple[str, int, str]] = set()
    for path in files:
        shown = path.relative_to(root).as_posix()
        rules = [old for old in OLD if re.match(old.files, shown)]
        for name, form, line in identifiers(path.relative_to(root), path.read_text(encoding="utf-8")):
            found |= {(shown, line, name) for old in rules if name in old.names.split() and old.form in ("any", form)}
    return [f"{file}:{line} {name}" for file, line, name in sorted(found)]
