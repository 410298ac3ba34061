"""Runs that are made without training: an imported one with other settings, and random numbers for what would train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mmtune import config, places
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.recipe import Recipe

MOVED = 0.05


def variant(run: Path, out: Path, changes: Sequence[str] = (), moved: str = "") -> Path:
    """A run folder with the weights of another one as far as it has them, under changed settings.

    Args:
        changes: a.b.c=value for the recipe.
        moved: a beginning of parameter names: those that train are shifted at random, as training would.
    """
    tree = store.read_recipe(run).model_dump(mode="json")
    for text in changes:
        tree = config.override(tree, text)
    recipe = config.validate(Recipe, places.from_here(tree, run))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(recipe.model, weights=True)
        groups = store.groups_of(model, recipe)
        held = store.load_run(run)[0].state_dict()
        with torch.no_grad():
            for name, parameter in [one for named in groups.values() for one in named]:
                if name in held and held[name].shape == parameter.shape:
                    parameter.copy_(held[name])
                if name.startswith(moved or "\0"):
                    parameter.add_(MOVED * torch.randn_like(parameter))
    store.save_run(out, model, recipe)
    return out


def tuned(**settings: object) -> list[str]:
    """Changes for one tuner `hf_peft`, with a group of its own."""
    entry = ", ".join(f"{key}: {value}".replace("'", "") for key, value in settings.items())
    return [f"model.tuners=[{{name: hf_peft, {entry}}}]", "groups.tuned={match: ['@hf_peft'], lr: 0.01}"]
