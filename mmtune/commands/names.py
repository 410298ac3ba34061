"""`mmtune list`: the names that a recipe may use, and the options of each."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune import registry
from mmtune.errors import UsageError

if TYPE_CHECKING:
    from mmtune.config import Config

SECTIONS = "sections"
"""The name under which the sections of a recipe are listed."""
KNOWN = (*registry.ROOMS, *registry.BUILTINS, SECTIONS)
WIDTH = 100


def run(room: str | None, name: str | None = None) -> None:
    """Print the names of a room or of built-in files, one a line; without a room, all; with a name, its options.

    Raises:
        UsageError: no such room. ConfigError: no such name in it.
    """
    if room is None:
        for one in KNOWN:
            print(f"{one}: {', '.join(_names(one)) or '-'}")
        print("\nmmtune list ROOM NAME shows the options of one.")
        return
    if room not in KNOWN:
        raise UsageError(f"no room {room!r}", f"one of {registry.suggest(room, KNOWN)}")
    if name is None:
        print("\n".join(_names(room)))
    elif room in registry.BUILTINS:
        _print_file(room, name)
    else:
        print("\n".join(_options(room, name)))


def _names(room: str) -> list[str]:
    if room == SECTIONS:
        return list(_sections())
    return list(registry.shipped(room)) if room in registry.BUILTINS else registry.names(room)  # type: ignore[arg-type]


def _sections() -> dict[str, type[Config]]:
    """Section of a recipe to its config; for `streams` and `groups`, the config of one entry."""
    from typing import get_args

    from mmtune.recipe import Recipe

    found = {}
    for section, field in Recipe.model_fields.items():
        kind = (get_args(field.annotation) or (field.annotation,))[-1]
        if hasattr(kind, "model_fields"):
            found[section] = kind
    return found


def _print_file(room: str, name: str) -> None:
    from mmtune import config

    path = config.locate(name, room)  # type: ignore[arg-type]
    print(f"# {path}\n{path.read_text(encoding='utf-8')}", end="")


def _options(room: str, name: str) -> list[str]:
    if room == SECTIONS:
        if name not in _sections():
            raise UsageError(f"a recipe has no section {name!r}", f"one of {registry.suggest(name, _sections(), room)}")
        chosen = _sections()[name]
        about = inspect.cleandoc(chosen.__doc__ or "")
    else:
        entry = registry.find(room, name)
        chosen = entry.Config
        about = about_entry(entry)
    return [f"{name}: {about}", "", *fields(chosen)]


def about_entry(entry: type) -> str:
    """The description of an entry: the docstring of its file, or else of its class."""
    return inspect.cleandoc(inspect.getmodule(entry).__doc__ or entry.__doc__ or "")  # type: ignore[union-attr]


@dataclass(frozen=True)
class Option:
    """One field of a config, in words."""

    name: str
    type: str
    default: str
    """The default as YAML writes it; `needed` for a required field."""
    values: tuple[str, ...]
    """Values of a field of free text, where they are known."""
    remark: str


def options(chosen: type[Config]) -> Iterator[Option]:
    """The fields of a config, in their order."""
    properties = chosen.model_json_schema().get("properties", {})
    for name, field in chosen.model_fields.items():
        default = "needed" if field.is_required() else _value(field.get_default(call_default_factory=True))
        remark = " ".join((field.description or "").split())
        yield Option(name, type_of(properties.get(name, {})), default, tuple(chosen.values_of(name)), remark)


def fields(chosen: type[Config]) -> Iterator[str]:
    """The options of a config: name, type and default on a line, the remark below."""
    for one in options(chosen):
        yield f"  {one.name}: {one.type} ({'' if one.default == 'needed' else 'default '}{one.default})"
        if one.values:
            yield from _indented("one of " + ", ".join(one.values))
        yield from _indented(one.remark)
    if chosen.model_config.get("extra") == "allow":
        yield from textwrap.wrap(inspect.cleandoc(chosen.__doc__ or ""), WIDTH, initial_indent="  ")


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")


def type_of(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words: `integer >= 1`, `sdpa | math`, `list of text`, `number or null`."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(one) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " | ".join(str(one) for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        count = f" of {len(schema['prefixItems'])}" if "prefixItems" in schema else ""
        return f"list{count} of {type_of(inner)}"
    if kind == "object" or "$ref" in schema:
        return "mapping"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f" {sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return {"string": "text", "boolean": "true | false"}.get(str(kind), str(kind or "any")) + ",".join(bounds)


def _value(default: Any) -> str:
    if default is None:
        return "null"
    if hasattr(default, "model_dump"):
        default = default.model_dump(mode="json")
    if isinstance(default, bool):
        return str(default).lower()
    return repr(list(default)) if isinstance(default, tuple) else repr(default) if default == "" else str(default)
