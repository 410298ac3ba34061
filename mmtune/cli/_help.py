"""How the help of a command reads: paragraphs as wide as the terminal, and what an option takes in plain words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

TAKES = {"int": "N", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}
"""What stands behind an option of a type, where it has no word of its own."""


def _plain(params: list[Any]) -> list[Any]:
    """Without the names of Python's types: an option says what it takes, a flag and an argument nothing."""
    for param in params:
        if isinstance(param, TyperArgument):
            param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif isinstance(param, TyperOption) and param.metavar is None:
            param.metavar = "" if param.is_flag else TAKES.get(param.type_descriptor.annotation.__name__, "VALUE")
    return params


class Command(TyperCommand):
    """A command whose help has no line ends of its source."""

    def __init__(self, *args: Any, help: str | None = None, **more: Any) -> None:
        super().__init__(*args, help=re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(help or "")), **more)

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class App(typer.Typer):
    """An app of these."""

    def __init__(self, **more: Any) -> None:
        super().__init__(cls=Group, **more)

    def command(self, name: str | None = None, **more: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=Command, **more)
