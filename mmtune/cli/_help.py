"""The help of a command: paragraphs as wide as the terminal, and the values of each option in plain words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

TAKES = {"int": "N", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}
"""Placeholder for the value of an option, by type, where the option sets no metavar."""


def _plain(params: list[Any]) -> list[Any]:
    """Replace the names of Python's types by placeholders; flags and arguments show none."""
    for param in params:
        if isinstance(param, TyperArgument):
            param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif isinstance(param, TyperOption) and param.metavar is None:
            param.metavar = "" if param.is_flag else TAKES.get(param.type_descriptor.annotation.__name__, "VALUE")
    return params


class Command(TyperCommand):
    """A command whose help is wrapped again, without the line breaks of the docstring."""

    def __init__(self, *args: Any, help: str | None = None, **more: Any) -> None:
        super().__init__(*args, help=re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(help or "")), **more)

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class App(typer.Typer):
    """An app with such commands."""

    def __init__(self, **more: Any) -> None:
        super().__init__(cls=Group, **more)

    def command(self, name: str | None = None, **more: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=Command, **more)
