"""The reference pages, made from the source: recipe fields, entries of the rooms, their contracts, the Python API.

    tools/reference                # write docs/reference/*.md
    tools/reference --check        # write nothing; say which page is not what the source says
    tools/reference --html FOLDER  # every module as HTML, by pdoc

A field is described by its type, its default and the remark under it; an entry by the docstring of its file. Nothing is
written by hand in these pages, so whoever changes a field changes its page by running this.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import mmtune
from mmtune import errors, registry
from mmtune.commands import names
from mmtune.config import Config
from mmtune.recipe import Recipe

if TYPE_CHECKING:
    from pdoc import doc

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
MADE = "Made from the source by `tools/reference`; do not edit."
CALLS = ("mmtune:load", "mmtune:chat", "mmtune:train", "mmtune.training.loop:train")
"""What is called, and what the options of `mmtune.train` go to."""
GIVEN = (
    "mmtune.serve.loaded:Loaded",
    "mmtune.serve.conversation:Conversation",
    "mmtune.serve.answer:Answer",
    "mmtune.serve.settings:Settings",
    "mmtune.training.loop:Result",
    "mmtune.types:MediaRef",
)
"""What the calls give and take."""
HANDED = (
    *(f"mmtune.types:{name}" for name in ("Sample", "Turn", "Media", "FeatureShape", "Features", "Embeds", "Batch")),
    "mmtune.media.base:Sampling",
    "mmtune.model:MultimodalModel",
    "mmtune.frozen_model:FrozenModel",
    "mmtune.reference:Reference",
    "mmtune.sequences:tokens",
    "mmtune.sequences:log_probs",
    "mmtune.sequences:pairs",
)
"""What entries of the rooms are given, give, and may use, beside what stands in the contract's own file."""


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 1 where a page is not current."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a page is not current")
    parser.add_argument("--html", type=Path, metavar="FOLDER", help="write every module as HTML instead")
    chosen = parser.parse_args(words)
    if chosen.html:
        html(chosen.html)
        return 0
    if chosen.check:
        stale = [name for name, make in PAGES.items() if not is_current(name, make())]
        for name in stale:
            print(f"docs/reference/{name} is not what the source says: run tools/reference", file=sys.stderr)
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
    return 0


def is_current(name: str, text: str) -> bool:
    """Whether the page that lies there has this text."""
    path = FOLDER / name
    return path.is_file() and path.read_text(encoding="utf-8") == text


def html(folder: Path) -> None:
    """Every module as HTML; `folder/index.html` is the first page."""
    import pdoc

    for verb in mmtune.__all__:  # they are resolved on first use, which pdoc does not know
        setattr(mmtune, verb, getattr(mmtune, verb))
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*modules(), output_directory=folder)


def modules() -> list[str]:
    """The package and what lies directly in it; pdoc finds what lies deeper."""
    found = (one.name for one in pkgutil.iter_modules(mmtune.__path__))
    return ["mmtune", *(f"mmtune.{name}" for name in found if not name.startswith("_"))]


# ----------------------------------------------------------------------------------------------------------- recipe


def recipe() -> str:
    """Every section of a recipe with its fields."""
    parts = ["# Fields of a recipe", MADE, "`mmtune list sections NAME` prints a section at the terminal."]
    for path, section in sections(Recipe):
        parts += [f"## {path}" if path else "## The whole", _prose(section), _table(section, path)]
    return _page(parts)


def sections(config: type[Config], path: str = "") -> Iterator[tuple[str, type[Config]]]:
    """Path to config, from the outside in; NAME and N stand for a name and a place that the recipe chooses."""
    yield path, config
    for field in config.model_fields:
        for step, inner in _inner(config, field):
            yield from sections(inner, f"{path}.{step}" if path else step)


def _inner(config: type[Config], field: str) -> Iterator[tuple[str, type[Config]]]:
    """The configs in a field that are no entries of a room, with their place in it."""
    annotation = config.model_fields[field].annotation
    for one in _classes(annotation):
        if _is_section(one):
            origin = get_origin(annotation)
            yield field + (".NAME" if origin is dict else ".N" if origin is tuple else ""), one


def _is_section(one: Any) -> bool:
    return inspect.isclass(one) and issubclass(one, Config) and one is not Config


def _classes(annotation: Any) -> Iterator[Any]:
    if arguments := get_args(annotation):
        for one in arguments:
            yield from _classes(one)
    else:
        yield annotation


def _rooms(annotation: Any, metadata: Iterable[Any]) -> list[str]:
    """The rooms whose entries a field takes."""
    found = [one.room for one in metadata if hasattr(one, "room")]
    for one in get_args(annotation):
        found += _rooms(one, getattr(one, "__metadata__", ()))
    return found


def _table(config: type[Config], path: str) -> str:
    lines = ["| field | type | default | |", "|---|---|---|---|"]
    for option in names.options(config):
        field = config.model_fields[option.name]
        if option.name == "name" and field.annotation is str:  # an entry's own, which the heading says
            continue
        inner = [f"{path}.{step}".strip(".") for step, _ in _inner(config, option.name)]
        rooms = _rooms(field.annotation, field.metadata)
        if inner:
            kind, default = f"[{inner[0]}](#{_anchor(inner[0])})", option.default if field.is_required() else ""
        elif rooms:
            several = get_origin(field.annotation) is tuple
            what = "list of entries" if several else "entry"
            kind, default = f"{what} of [{rooms[0]}](entries.md#{_anchor(rooms[0])})", _code(option.default)
        else:
            kind, default = _cell(option.type), _code(option.default)
        values = f" One of {', '.join(option.values)}." if option.values else ""
        lines.append(f"| `{option.name}` | {kind} | {default} | {_cell(option.remark + values)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _code(text: str) -> str:
    return text if text == "needed" else f"`{_cell(text)}`"


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    """Text in which what looks like a tag is none; code stays as it is."""
    return "`".join(one if at % 2 else re.sub(r"<(?=[\w/!])", "&lt;", one) for at, one in enumerate(text.split("`")))


def _prose(item: Any) -> str:
    return _plain(inspect.cleandoc(item.__doc__ or ""))


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


# ---------------------------------------------------------------------------------------------------------- entries


def entries() -> str:
    """Every entry of every room with its options."""
    parts = ["# Entries of the rooms", MADE, "`mmtune list ROOM NAME` prints one at the terminal."]
    for room in registry.ROOMS:
        parts += [f"## {room}", _prose(registry.contract(room)).partition("\n\n")[0]]
        for name in registry.names(room):
            if registry.source(room, name) is None:  # those of installed packages are not ours to describe
                entry = registry.find(room, name)
                parts += [f"### {room}: {name}", _plain(names.about_entry(entry)), _table(entry.Config, name)]
                for path, section in list(sections(entry.Config, name))[1:]:
                    parts += [f"#### {path}", _prose(section), _table(section, path)]
    return _page(parts)


# -------------------------------------------------------------------------------------------------------- contracts


def contracts() -> str:
    """The contract of every room with what stands beside it in its file, then what entries are handed."""
    parts = ["# Contracts of the rooms", MADE]
    parts.append("[CONTRIBUTING.md](../../CONTRIBUTING.md) says what an addition states and how it is checked.")
    for room in registry.ROOMS:
        module = sys.modules[registry.contract(room).__module__]
        parts.append(f"## {room}")
        for name, item in list(vars(module).items()):  # to look into it may import more
            described = inspect.isclass(item) or inspect.isfunction(item)
            if described and (item.__module__, item.__name__) == (module.__name__, name) and name[0] != "_":
                parts += _section(item) if _is_section(item) else _object(f"{module.__name__}:{name}")
    parts.append("## What entries are handed")
    for path in HANDED:
        parts += _object(path)
    return _page(parts)


def _section(config: type[Config]) -> list[str]:
    return [f"### {config.__module__}.{config.__name__}", _prose(config), _table(config, "")]


# ----------------------------------------------------------------------------------------------------------- Python


def python() -> str:
    """The calls, what they give, and the errors, with signatures and docstrings."""
    refused = [
        f"{errors.__name__}:{name}"
        for name, item in vars(errors).items()
        if inspect.isclass(item) and item.__module__ == errors.__name__ and not name.startswith("_")
    ]
    parts = ["# Python", MADE, "[docs/python.md](../python.md) shows it at work."]
    for heading, paths in (("Calls", CALLS), ("What they give and take", GIVEN), ("Errors", refused)):
        parts.append(f"## {heading}")
        for path in paths:
            parts += _object(path)
    return _page(parts)


def _object(path: str) -> list[str]:
    from pdoc import doc

    warnings.filterwarnings("ignore", module="pdoc", category=UserWarning)  # a type that it leaves as it is written
    module, _, name = path.partition(":")
    item = getattr(importlib.import_module(module), name)
    if not inspect.isclass(item):
        return [f"### {module}.{name}", *_function(doc.Function(module, name, item, (module, name)))]
    found = doc.Class(module, name, item, (module, name))
    members = [one for one in found.own_members if not one.name.startswith("_")]
    parts = [f"### {module}.{name}", _docstring(found)]
    parts.append("\n".join(_variable(one) for one in members if isinstance(one, doc.Variable)))
    for one in members:
        if isinstance(one, doc.Function):
            parts += [f"#### {name}.{one.name}", *_function(one)]
    return parts


def _variable(found: doc.Variable) -> str:
    remark, default = _plain(" ".join(found.docstring.split())), found.default_value
    simple = default is None or type(default) in (bool, int, float, str, tuple)
    said = _portable(found.name + found.annotation_str) + (f" = {default!r}" if simple else "")
    return f"- `{said}`" + (f": {remark}" if remark else "")


def _function(found: doc.Function) -> list[str]:
    return [f"```python\ndef {found.name}{_portable(str(found.signature))}\n```", _docstring(found)]


def _portable(signature: str) -> str:
    """The same in every version of Python."""
    return signature.replace("pathlib._local.", "pathlib.")


def _docstring(found: doc.Doc[Any]) -> str:
    from pdoc import docstrings

    text = docstrings.convert(found.docstring, "google", None).replace("###### ", "##### ")
    return re.sub(r"\n{3,}", "\n\n", _plain(text)).strip()


PAGES: dict[str, Callable[[], str]] = {
    "recipe.md": recipe,
    "entries.md": entries,
    "contracts.md": contracts,
    "python.md": python,
}
"""File name to what makes its text."""

if __name__ == "__main__":
    sys.exit(main())
