"""`mmtune.train(recipe, out)`: training from Python. Nothing is imported before it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtune.recipe import Recipe
    from mmtune.training.loop import Result


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    **options: Any,
) -> Result:
    """Train a recipe into a run folder.

    Args:
        recipe: a recipe, the path or name of one, or one as a mapping.
        out: the run folder; `run.out` of the recipe when not given.
        overrides: changes to the recipe, as {"schedule.steps": 100} or ["schedule.steps=100"].
        options: resume, dry_run, progress, allow, allow_code of `mmtune.training.loop.train`.

    Raises:
        ConfigError: a recipe that cannot be used, or a change to a key that it does not have.
        MmtuneError: whatever `mmtune.training.loop.train` raises.
    """
    from mmtune.training import loop

    return loop.train(_changed(recipe, overrides), out, **options)


def _changed(
    recipe: Recipe | str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str]
) -> Recipe | str | Path:
    import json

    from mmtune import config
    from mmtune.errors import ConfigError
    from mmtune.recipe import Recipe

    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r}", "a mapping or a list", f"overrides=[{overrides!r}]")
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    if isinstance(recipe, (str, Path)):
        return config.load(Recipe, recipe, overrides) if overrides else recipe
    if isinstance(recipe, Recipe) and not overrides:
        return recipe
    if not isinstance(recipe, (Recipe, Mapping)):
        raise ConfigError(f"a recipe that is a {type(recipe).__name__}", "its name, its path, or a mapping", '"pocket"')
    tree = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
    for text in overrides:
        tree = config.override(tree, text)
    return config.validate(Recipe, tree)
