"""`mmtune data ...`: shards of training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.complete import recipes
from mmtune.cli.words import AllowCode, data_app
from mmtune.errors import UsageError


@data_app.command("make")
def data_make(
    world: Annotated[str, typer.Argument(metavar="WORLD", help="pocket")],
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same clips.")] = 0,
    level: Annotated[str, typer.Option(metavar="easy|full", help="How much happens in a clip.")] = "full",
    per_shard: Annotated[int, typer.Option(min=1, help="Clips in one shard.")] = 500,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    split: Annotated[str, typer.Option(metavar="train|val|test", help="Splits never share a clip.")] = "train",
    kinds: Annotated[
        str | None, typer.Option(help="What successive records are about: video,image,audio,points; repeats count.")
    ] = None,
) -> None:
    """Draw clips with questions and answers, and write them as shards."""
    if world != "pocket":
        raise UsageError(seen=f"WORLD {world}", expected="pocket")

    from mmtune.commands import data as command

    command.make(
        out=out, clips=clips, seed=seed, level=level, split=split, per_shard=per_shard, workers=workers, kinds=kinds
    )


@data_app.command("index")
def data_index(patterns: Annotated[list[str], typer.Argument(metavar="PATTERN...", help="Shards.")]) -> None:
    """Read shards once and write an index beside each, with digests and what was refused."""
    from mmtune.commands import data as command

    command.index(patterns)


@data_app.command("check")
def data_check(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PATTERN... [KEY=VALUE]...", help="Shards or dataset cards; changes to the recipe."),
    ],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="The recipe that would train on them.", autocompletion=recipes)
    ],
    stream: Annotated[str | None, typer.Option(help="Stream of the recipe; needed when it has several.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Records to look at.")] = 200,
    samples: Annotated[int, typer.Option(min=0, help="Samples to print in full, with labels.")] = 2,
    allow_code: AllowCode = None,
) -> None:
    """Say what a recipe would make of some data: counts, skips by reason, lengths, and a few samples in full."""
    changes = [word for word in words if _looks_like_change(word)]
    patterns = [word for word in words if word not in changes]
    if not patterns:
        raise UsageError(seen="no shards", expected="patterns or names of cards before the changes")

    from mmtune.commands import check as command

    if code := command.run(patterns, recipe, stream, limit, samples, changes):
        raise SystemExit(code)


def _looks_like_change(word: str) -> bool:
    """KEY=VALUE where a path may stand too: a dotted name before the sign. A file of such a name is written ./NAME."""
    key, sign, _ = word.partition("=")
    return bool(sign) and all(part.isidentifier() or part.isdigit() for part in key.split("."))
