"""The published layout to which a run of a new recipe can be exported, found on a model without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmtune.checkpoint import convert
from mmtune.checkpoint.foreign.base import Opened
from mmtune.errors import MmtuneError

if TYPE_CHECKING:
    from mmtune.recipe import Recipe

NEAREST = {"video": "pllava", "image": "llava_hf"}
"""The layout whose refusal is reported where none fits, by the kinds of media of the recipe."""
LONGEST = 200
"""Most characters of a refusal that are shown, since it may list every tensor."""


def layout(recipe: Recipe, model: Any) -> tuple[str | None, str]:
    """(the first layout that can hold every part, or None; a line about it, or about the obstacle).

    Every layout is tried with names and shapes, as `mmtune export` does before it reads weights.

    Args:
        model: on the meta device. Adapters are merged in it afterwards.
    """
    run = Opened(model, recipe)
    refused: dict[str, str] = {}
    for kind in convert.layouts_out():
        try:
            convert.importer(kind).write(run)
        except MmtuneError as error:
            refused[kind] = error.seen.splitlines()[0]
        else:
            return kind, f"a run of it can leave in the published layout {kind}"
    kinds = {kind for branch in recipe.model.branches.values() for kind in branch.kinds or ()}
    nearest = next((NEAREST[kind] for kind in NEAREST if kind in kinds), None)
    why = f"{nearest}: {_short(refused[nearest])}" if nearest else "none is for these media"
    return None, f"no published layout has a place for a run of it; {why}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
