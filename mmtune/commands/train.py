"""`mmtune train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmtune import config, places
from mmtune.errors import ConfigError, UsageError


def run(
    recipe: str,
    overrides: list[str],
    out: Path | None,
    resume: bool,
    dry_run: bool,
    allow: Sequence[str] = (),
    allow_remote: bool = False,
) -> int:
    """Train; returns the exit code, which says whether a signal ended it.

    With `resume`, a run folder may stand for its own recipe: `mmtune train --resume runs/one`. Addresses that only such
    a recipe names are contacted where `allow_remote` says so.
    """
    from mmtune.recipe import Recipe

    folder = Path(recipe) if (Path(recipe) / "recipe.yaml").is_file() else None
    if resume and out is None and folder is None and not _is_recipe(recipe):
        raise UsageError(
            seen=f"{recipe} is not the folder of a run" + (": it has no recipe.yaml" if Path(recipe).exists() else ""),
            expected="a folder that `mmtune train` has begun to write",
            hint="start it with: mmtune train RECIPE --out FOLDER",
        )
    loaded = config.load(Recipe, folder or recipe, overrides)
    if folder is not None and not allow_remote:
        places.refuse_unasked(loaded.model_dump(mode="json"), overrides)
    if out is None and resume:
        out = folder

    from mmtune.train.loop import train

    return train(loaded, out=out, resume=resume, dry_run=dry_run, allow=allow).code


def _is_recipe(name: str) -> bool:
    try:
        config.locate(name)
    except ConfigError:
        return False
    return True
