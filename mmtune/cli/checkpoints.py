"""`mmtune import` and `export`: published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.complete import room
from mmtune.cli.options import AllowCode, app, overrides_of
from mmtune.errors import UsageError

layouts = room("checkpoint/foreign")


@app.command("import")
def import_(
    layout: Annotated[
        str | None,
        typer.Argument(metavar="LAYOUT", help="A name from `mmtune import --list`.", autocompletion=layouts),
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Published files or folders, in the order of the list or as ROLE=PATH."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder to write.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the layout, see --list.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A change to the recipe of the run.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="The kinds, what each takes, and their options.")] = False,
    allow_code: AllowCode = None,
) -> None:
    """Make a run of a published checkpoint, to chat with, train on or export."""
    from mmtune.commands import import_ as command

    if show_list:
        command.show()
        return
    if layout is None or not paths or out is None:
        raise UsageError(
            seen="mmtune import without " + ("a kind" if layout is None else "paths" if not paths else "--out"),
            expected="mmtune import LAYOUT PATH... --out RUN",
            hint="mmtune import --list shows the kinds and what each takes",
        )
    command.run(layout, paths, out, option or [], overrides_of(change))


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            "--kind",
            metavar="LAYOUT",
            help="The layout: a name from `mmtune import --list`.",
            autocompletion=layouts,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="New folder for the published layout.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the kind.")] = None,
    allow_code: AllowCode = None,
) -> None:
    """Write a run in a published layout, for the programs that read that.

    A layout can hold some parts only. Of recipes by `mmtune init`, videos with --method lora --connector pool
    can be exported as pllava, pictures with --connector mlp and the method connector, lora or full as llava_hf.
    """
    from mmtune.commands import export as command

    if layout is None or out is None:
        raise UsageError(
            seen="mmtune export without " + " and ".join(["--layout"] * (layout is None) + ["--out"] * (out is None)),
            expected="mmtune export RUN --layout LAYOUT --out FOLDER, with one of " + ", ".join(command.layouts()),
            hint="pllava for videos with the connector pool, llava_hf for pictures with mlp; mmtune export --help",
        )
    command.run(run, layout, out, option or [])
