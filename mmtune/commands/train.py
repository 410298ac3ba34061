"""`mmtune train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmtune import config, paths
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
        paths.refuse_unasked(loaded.model_dump(mode="json"), overrides)
    if folder is not None:
        _refuse_elsewhere(loaded.run.feature_cache, folder, overrides)
    if out is None and resume:
        out = folder

    from mmtune.training.loop import train

    return train(loaded, out=out, resume=resume, dry_run=dry_run, allow=allow).code


def _refuse_elsewhere(cache: str | None, folder: Path, overrides: Sequence[str]) -> None:
    """Raise UsageError where only a stored recipe names a feature cache outside of its run folder and the cache is
    still empty: the author of the recipe may be another person than the one who runs it.
    """
    said = any(word.startswith(("run.feature_cache=", "run={")) for word in overrides)
    if cache is None or said or Path(cache).resolve().is_relative_to(folder.resolve()):
        return
    if Path(cache).absolute().is_relative_to(folder.absolute()):
        raise UsageError(f"{cache} in the run is a link, or in one, to another folder", "a folder", "remove the link")
    if not any(Path(cache).glob("*/about.json")):
        raise UsageError(
            seen=f"only the recipe in {folder} names the feature cache {cache}, which is empty",
            expected="a folder that you name yourself, since features would be written there",
            hint=f"run.feature_cache={cache} after the run, if you want that",
        )


def _is_recipe(name: str) -> bool:
    try:
        config.locate(name)
    except ConfigError:
        return False
    return True
