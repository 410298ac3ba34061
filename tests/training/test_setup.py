"""What a run is built of can be had without the run: it writes nothing, and a replay needs no more than that."""

from __future__ import annotations

import shutil

import torch

from mmtune import config
from mmtune.checkpoint import store
from mmtune.recipe import Recipe
from mmtune.training import loop, setup
from mmtune.training.distributed import Runtime
from mmtune.training.replay import replay
from tests.training import world


def test_building_leaves_the_folder_as_it_is(tmp_path):
    recipe = world.recipe(tmp_path / "world")
    lines: list[str] = []
    one = setup.build(recipe, tmp_path / "run", Runtime("cpu"), lines.append)
    other = setup.build(recipe, tmp_path / "run", Runtime("cpu"))
    assert not (tmp_path / "run").exists() and any("parameters train" in line for line in lines)
    assert one.base == other.base and one.steps == other.steps == recipe.schedule.steps
    weights = store.trained_tensors(other.model, other.groups)
    for file, tensors in store.trained_tensors(one.model, one.groups).items():
        assert all(torch.equal(tensor, weights[file][name]) for name, tensor in tensors.items())
    assert set(one.holders()) == set(recipe.groups)


def test_a_replay_does_not_ask_for_what_the_run_began_with(tmp_path):
    recipe = world.recipe(tmp_path / "world")
    loop.train(recipe, tmp_path / "first", progress="off")
    tree = config.merge(recipe.model_dump(mode="json"), {"run": {"init_from": str(tmp_path / "first")}})
    loop.train(config.validate(Recipe, tree), tmp_path / "run", progress="off")
    shutil.rmtree(tmp_path / "first")
    step, trials = replay(tmp_path / "run", ["part-0000/000003"], device="cpu")
    assert step == recipe.schedule.steps and trials and all(trial.finite for trial in trials)
