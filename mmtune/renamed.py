"""Old spellings of what recipes, prompt templates and runs hold: read with a note, and written in today's.

One table for every name that a file may have. Readers of YAML and of tensors pass what they read through it; whatever
is written has the new names only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mmtune.errors import ConfigError
from mmtune.output import Output

FIELDS = {
    "schedule.turns": "interleave",
    "schedule.kind": "lr_schedule",
    "schedule.floor": "min_lr_ratio",
    "groups.*.clip": "max_grad_norm",
    "groups.*.kind": "lr_schedule",
    "groups.*.floor": "min_lr_ratio",
    "run.clip": "max_grad_norm",
    "run.checkpointing": "activation_checkpointing",
    "run.start": "init_from",
    "model.fusion.blank": "default_image_branch",
    "model.branches.*.connector.places": "token_positions",
    "times": "timestamps",
    "blank": "black_image",
}
"""Path of a field to its name today; `*` stands for any one key. The last two: of a template, of an importer."""

TENSORS = {"llm.soft.": "llm.prefix."}
"""Beginning of the names of parameters to the beginning that they have today."""

STATE = {"bad": "nonfinite_steps", "pieces": "micro_step_parts", "judged": "validation"}
"""Key of run.json in a saved state to the key that it has today."""

PARTS = {"kind": "type"}
"""Key of a part of a saved conversation to the key that it has today."""

_errors = Output("stderr")
_said: set[tuple[str, tuple[str, ...]]] = set()
_Value = TypeVar("_Value")


def fields(tree: Any, origin: str = "") -> Any:
    """A recipe or a template, as plain data, under today's names; what has them is given back as it is.

    Args:
        origin: where it was read, for one note in each process; without one nothing is noted.

    Raises:
        ConfigError: a field under its old name and its new one.
    """
    found: list[str] = []
    for path, new in FIELDS.items():
        *way, old = path.split(".")
        tree = _renamed(tree, way, old, new, "", found)
    tree = _patterns(tree)
    if found and origin and (origin, tuple(found)) not in _said:
        _said.add((origin, tuple(found)))
        shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
        _errors.say(f"note: {origin} has old names, read as today's: {shown}")
    return tree


def path(keys: list[str], origin: str = "") -> list[str]:
    """The keys of one field, as `a.b.c=value` names it, under its name of today; noted as `fields` does."""
    for known, new in FIELDS.items():
        parts = known.split(".")
        if len(parts) <= len(keys) and all(p in ("*", k) for p, k in zip(parts, keys, strict=False)):
            changed = [*keys[: len(parts) - 1], new, *keys[len(parts) :]]
            if origin and (origin, (known,)) not in _said:
                _said.add((origin, (known,)))
                _errors.say(f"note: {'.'.join(keys)} is called {'.'.join(changed)} now")
            return changed
    return keys


def keys(held: Any, names: Mapping[str, str]) -> Any:
    """A mapping under the keys of today, as `STATE` or `PARTS` has them; whatever is no mapping is left as it is."""
    if not isinstance(held, dict) or not names.keys() & held.keys():
        return held
    return {names.get(key, key): value for key, value in held.items() if names.get(key) not in held}


def tensors(held: Mapping[str, _Value]) -> dict[str, _Value]:
    """Tensors, or their moments, by the names that their parameters have today."""
    return {_tensor(name): value for name, value in held.items()}


def _tensor(name: str) -> str:
    for old, new in TENSORS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _renamed(node: Any, way: list[str], old: str, new: str, at: str, found: list[str]) -> Any:
    if not isinstance(node, dict):
        return node
    if way:
        keys: Iterable[str] = list(node) if way[0] == "*" else [key for key in node if key == way[0]]
        changed = {key: _renamed(node[key], way[1:], old, new, f"{at}{key}.", found) for key in keys}
        return {**node, **changed} if any(changed[key] is not node[key] for key in changed) else node
    if old not in node:
        return node
    if new in node:
        raise ConfigError(
            f"{at}{old} and {at}{new}, which are one field", "the field once", f"leave out {at}{old}, its old name"
        )
    found.append(f"{at}{old} -> {new}")
    return {new if key == old else key: value for key, value in node.items()}


def _patterns(tree: Any) -> Any:
    """Patterns over the names of parameters, of groups and of `freeze`, that begin with an old one."""
    if not isinstance(tree, dict):
        return tree

    def today(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [today(one) for one in value]
        return _tensor(value) if isinstance(value, str) else value

    def held(node: Any, key: str) -> Any:
        if not isinstance(node, dict) or key not in node or (new := today(node[key])) == node[key]:
            return node
        return {**node, key: new}

    out, groups = tree, tree.get("groups")
    if isinstance(groups, dict):
        changed = {name: held(group, "match") for name, group in groups.items()}
        if any(changed[name] is not groups[name] for name in groups):
            out = {**out, "groups": changed}
    model = held(tree.get("model"), "freeze")
    return out if model is tree.get("model") else {**out, "model": model}
