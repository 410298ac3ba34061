"""The section `models` of a recipe: runs that its objectives ask, beside the model that is trained."""

from __future__ import annotations

from typing import Any, Literal

from mmtune import config
from mmtune.config import Config


class OtherModel(Config):
    """A run whose model stays as it is: a teacher, a reward model, a judge."""

    run: str
    """Its run folder. The tokenizer has to be the one that is trained with, and each branch of the model that is
    trained has to be there and to read media the same way."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What its frozen weights are held and computed in; as `run.precision` says when not given."""


def problems(recipe: Any) -> list[dict[str, Any]]:
    """A problem for each stream whose objective asks a model that the recipe does not have, see `config.problem`."""
    there = ", ".join(recipe.models) or "none"
    return [
        config.problem(f"streams.{stream}.objective", f"no model {name} in the section `models`; there: {there}")
        for stream, section in recipe.streams.items()
        if not isinstance(section.objective, config.Outside)  # of which nothing is imported yet
        for name in section.objective.model_names()
        if name not in recipe.models
    ]
