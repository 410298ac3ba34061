"""Shell completion: names read from folders, without importing them, so that the shell does not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from mmtune import registry

Completion = Callable[[str], list[str]]


def _starting(known: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in known if name.startswith(incomplete)]


def builtins(builtin: registry.Builtin) -> Completion:
    """Completion by the names of built-in files."""
    return lambda incomplete: _starting(registry.shipped(builtin), incomplete)


def room(name: str) -> Completion:
    """Completion by the names of a room."""
    return lambda incomplete: _starting(registry.names(name), incomplete)


recipes = builtins("recipes")


def rooms(incomplete: str) -> list[str]:
    """Rooms, folders of built-in files, and the sections of a recipe."""
    return _starting((*registry.ROOMS, *registry.BUILTINS, "sections"), incomplete)


def entries(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of the room that was typed before."""
    chosen = ctx.params.get("room")
    if chosen in registry.BUILTINS:
        return _starting(registry.shipped(chosen), incomplete)
    return _starting(registry.names(chosen), incomplete) if chosen in registry.ROOMS else []


def methods(incomplete: str) -> list[str]:
    """Values of `mmtune init --method`."""
    return _starting(("connector", "lora", "full", "adapter_v2"), incomplete)


def encoders(incomplete: str) -> list[str]:
    """The small parts of the package, and entries before a folder or repository."""
    return _starting(("pocket", *(f"{name}:" for name in registry.names("encoders"))), incomplete)
