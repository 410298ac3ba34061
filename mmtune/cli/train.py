"""`mmtune train`, `replay` and `plan`: runs, and what they would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.options import AllowCode, AllowRemote, Overrides, Recipe, Run, app, overrides_of


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last saved state in the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build all, take one step, save nothing.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Resume although this changed: recipe, data, tokenizer, base, models, prompts, code, ledger, or all. "
            "Repeat.",
        ),
    ] = None,
    allow_remote: AllowRemote = False,
    allow_code: AllowCode = None,
) -> None:
    """Train a recipe. To resume a run: mmtune train --resume FOLDER."""
    changes = overrides_of(overrides)

    from mmtune.commands import train as command

    if code := command.run(recipe, changes, out, resume, dry_run, allow or [], allow_remote):
        raise SystemExit(code)


@app.command()
def replay(
    run: Run,
    id: Annotated[list[str] | None, typer.Option(metavar="ID", help="A sample, as skipped.jsonl names it.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    allow_remote: AllowRemote = False,
    allow_code: AllowCode = None,
) -> None:
    """Try the samples of steps that were not finite, each alone, with the weights last saved."""
    from mmtune.commands import replay as command

    command.run(run, id or [], device, allow_remote)


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="Devices of the run.")] = 1,
    device_memory: Annotated[float, typer.Option(min=0.1, help="Memory of each, GB.")] = 80.0,
    device_tflops: Annotated[float, typer.Option(min=0.001, help="What each can do, 10^12 operations/s.")] = 989.0,
    utilisation: Annotated[float, typer.Option(min=0.01, max=1.0, help="Part of that which a run reaches.")] = 0.4,
    link: Annotated[float, typer.Option(min=0.01, help="Between devices, GB a second for each.")] = 400.0,
    allow_code: AllowCode = None,
) -> None:
    """Say what each device would hold and how long a step would take, by arithmetic, for each run.strategy."""
    changes = overrides_of(overrides)

    from mmtune.commands import plan as command

    command.run(recipe, changes, command.Devices(devices, device_memory, device_tflops, utilisation, link))
