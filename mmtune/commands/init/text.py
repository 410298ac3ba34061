"""A recipe as YAML for people: one setting a line, with its remark after or above it, each remark once."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from mmtune.recipe import Recipe

WIDTH = 118


def written(tree: Mapping[str, Any], remarks: Mapping[str, str] | None = None) -> str:
    """The YAML of a recipe.

    Args:
        tree: plain values by the fields of `Recipe`.
        remarks: path of a setting to the remark that replaces that of its field.
    """
    return "\n".join(_Writer(dict(remarks or {})).section(tree, Recipe, "", 0)) + "\n"


class _Writer:
    def __init__(self, remarks: Mapping[str, str]) -> None:
        self.remarks = remarks
        self.said: set[str] = set()

    def section(self, tree: Mapping[str, Any], cls: type[BaseModel], path: str, depth: int) -> Iterator[str]:
        for key, value in tree.items():
            here = f"{path}.{key}" if path else key
            field = cls.model_fields[key]
            remark = self._remark(here, " ".join((field.description or "").split()))
            inner = _inside(field.annotation)
            if depth == 0:
                yield ""
            if inner is None or not value:
                yield from _line(depth, f"{key}: {_flow(value)}", remark)
                continue
            yield from _line(depth, f"{key}:", remark)
            named = isinstance(value, Mapping) and not set(value) <= set(inner.model_fields)
            for name, part in value.items() if named else [("", value)]:
                if name:
                    yield f"{'  ' * (depth + 1)}{name}:"
                deeper = f"{here}.*" if name else here
                yield from self.section(part, inner, deeper, depth + (2 if name else 1))

    def _remark(self, path: str, usual: str) -> str:
        """The remark of a setting, the first time that it is written."""
        text = self.remarks.get(path, usual)
        if path in self.said:
            return ""
        self.said.add(path)
        first = text.partition(". ")[0].rstrip(".")
        return text if path in self.remarks else first[:1].lower() + first[1:]


def _inside(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, directly or by name; None for values and entries, which fit on one line."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    found = [kind for kind in kinds if issubclass(kind, BaseModel) and kind.__name__.endswith(("Section", "Group"))]
    return found[0] if found and not annotation.__class__.__name__.startswith("tuple") else None


def _line(depth: int, text: str, remark: str) -> Iterator[str]:
    lead = "  " * depth
    if remark and len(lead + text) + len(remark) + 4 <= WIDTH:
        yield f"{lead}{text}  # {remark}"
        return
    for line in textwrap.wrap(remark, WIDTH - len(lead) - 2):
        yield f"{lead}# {line}"
    yield lead + text


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
