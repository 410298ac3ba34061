"""Runs that are made without training: an imported one with other settings, and random numbers for what would train."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmtune import config, paths
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.checkpoint.foreign.base import Opened
from mmtune.recipe import Recipe
from tests.checkpoint.foreign.meta import transformers_folder

MOVED = 0.05
Edit = Callable[[dict[str, Any]], None]


def variant(run: Path, out: Path, changes: Sequence[str] = (), moved: str = "", edit: Edit | None = None) -> Path:
    """The run folder of `varied`."""
    made = varied(run, changes, moved, edit)
    store.save_run(out, made.model, made.recipe)
    return out


def varied(run: Path, changes: Sequence[str] = (), moved: str = "", edit: Edit | None = None) -> Opened:
    """A run in memory with the weights of one in a folder as far as that has them, under changed settings.

    Args:
        changes: a.b.c=value for the recipe.
        edit: changes the tree in place, before that.
        moved: a beginning of parameter names: those that train are shifted at random, as training would.
    """
    tree, held = _held(run)
    tree = copy.deepcopy(tree)
    if edit is not None:
        edit(tree)
    for text in changes:
        tree = config.override(tree, text)
    recipe = config.validate(Recipe, paths.from_here(tree, run))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(recipe.model, weights=True)
        groups = store.groups_of(model, recipe)
        with torch.no_grad():
            for file, tensors in store.trained_tensors(model, groups).items():
                for name, tensor in tensors.items():
                    if name in held and held[name].shape == tensor.shape:
                        tensor.copy_(held[name])
                    if file in groups and name.startswith(moved or "\0"):
                        tensor.add_(MOVED * torch.randn_like(tensor))
    return Opened(model.requires_grad_(False), recipe)


@functools.lru_cache(maxsize=2)
def _held(run: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Recipe and weights of a run folder, read once for many variants."""
    return store.read_recipe(run).model_dump(mode="json"), store.load_run(run)[0].state_dict()


def tuned(**settings: object) -> list[str]:
    """Changes for one tuner `hf_peft`, with a group of its own."""
    entry = ", ".join(f"{key}: {value}".replace("'", "") for key, value in settings.items())
    return [f"model.tuners=[{{name: hf_peft, {entry}}}]", "groups.tuned={match: ['@hf_peft'], lr: 0.01}"]


def around(part: Path, out: Path) -> Path:
    """A run around an encoder that was brought in alone: branch `one`, with a linear connector that trains."""
    entry = config.parse((part / "encoder.yaml").read_text(), "encoder.yaml")["encoder"]
    branch = {"encoder": {**entry, "weights": str(part)}, "connector": {"name": "linear"}}
    llm = {"name": "hf", "folder": str(transformers_folder(out.parent / f"{out.name}_llm"))}
    tree = {
        "model": {"branches": {"one": branch}, "llm": llm, "fusion": {"name": "tokens"}},
        "chat": {"prompt": "vicuna"},
        "streams": {"a": {"data": ["alpaca"], "prompt": "vicuna"}},
        "groups": {"connector": {"match": ["branches.one.connector.*"], "lr": 0.01}},
    }
    recipe = config.validate(Recipe, tree)
    store.save_run(out, models.build(recipe.model, weights=True), recipe)
    return out
