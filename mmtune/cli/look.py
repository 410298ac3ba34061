"""`mmtune show`, `list` and `env`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from mmtune.cli.words import Overrides, Recipe, app, overrides_of


@app.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    groups: Annotated[bool, typer.Option("--groups", help="Who trains what, how fast, by which stream.")] = False,
) -> None:
    """Say what a recipe builds and what trains, without reading weights."""
    changes = overrides_of(overrides)

    from mmtune.commands import show as command

    command.run(recipe, changes, groups)


@app.command("list")
def list_names(
    room: Annotated[str | None, typer.Argument(metavar="[ROOM]", help="encoders, recipes, prompts, ...")] = None,
) -> None:
    """The names that a recipe may use."""
    from mmtune.commands import names as command

    command.run(room)


@app.command()
def env() -> None:
    """Versions, devices, and which decoders work here."""
    from mmtune.commands import env as command

    command.run()
