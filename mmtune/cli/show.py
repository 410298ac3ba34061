"""`mmtune show`, `list` and `env`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from mmtune.cli.complete import entries, recipes, rooms
from mmtune.cli.options import AllowCode, Overrides, app, overrides_of
from mmtune.errors import UsageError


@app.command()
def show(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A file, or a name from `mmtune list recipes`.", autocompletion=recipes),
    ] = None,
    overrides: Overrides = None,
    groups: Annotated[bool, typer.Option("--groups", help="Who trains what, how fast, by which stream.")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="The whole recipe as YAML, defaults included.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="JSON schema of recipes, for editors; no RECIPE.")] = False,
    allow_code: AllowCode = None,
) -> None:
    """Say what a recipe builds and what trains, without reading weights."""
    changes = overrides_of(overrides)
    if schema == (recipe is not None) or groups + resolved + schema > 1:
        raise UsageError(
            seen="mmtune show with " + " and ".join(_given(recipe, groups=groups, resolved=resolved, schema=schema)),
            expected="mmtune show RECIPE [--groups | --resolved], or mmtune show --schema",
        )

    from mmtune.commands import show as command

    if schema:
        command.schema()
    elif resolved:
        command.resolved(str(recipe), changes)
    else:
        command.run(str(recipe), changes, groups)


def _given(recipe: str | None, **flags: bool) -> list[str]:
    return [*([recipe] if recipe else []), *(f"--{name}" for name, on in flags.items() if on)] or ["no RECIPE"]


@app.command("list")
def list_names(
    room: Annotated[
        str | None,
        typer.Argument(metavar="ROOM", help="encoders, recipes, prompts, ...", autocompletion=rooms),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them: its options.", autocompletion=entries)
    ] = None,
    allow_code: AllowCode = None,
) -> None:
    """The names that a recipe may use; with NAME, the options of one, their types, defaults and remarks."""
    from mmtune.commands import names as command

    command.run(room, name)


@app.command()
def env() -> None:
    """Versions, devices, and which decoders work here."""
    from mmtune.commands import env as command

    command.run()
