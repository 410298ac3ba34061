"""A run that begins with the weights of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmtune import config
from mmtune.checkpoint import store
from mmtune.errors import CheckpointError
from mmtune.model import build
from mmtune.recipe import Recipe
from tests.training.world import tree

CONNECTOR = {"connector": {"match": ["branches.sight.connector.*"], "lr": 0.01}}


def made(folder: Path, groups: dict, **model):
    """A model of the tiny world and its recipe."""
    whole = tree(folder)
    streams = {"one": {"data": ["x/*.tar"], "format": "llava", "prompt": whole["chat"]["prompt"]}}
    whole |= {"groups": groups, "streams": streams}
    whole["model"] |= model
    recipe = config.validate(Recipe, whole)
    return build(recipe.model), recipe


def test_all_of_the_other_run_and_nothing_else(tmp_path: Path) -> None:
    first, recipe = made(tmp_path / "world", CONNECTOR)
    with torch.no_grad():
        for parameter in first.branches["sight"].connector.parameters():
            parameter.fill_(0.5)
    store.save_run(tmp_path / "run", first, recipe)
    lora = [{"name": "hf_peft", "method": "lora", "r": 2, "target_modules": ["q_proj"]}]
    groups = {**CONNECTOR, "lora": {"match": ["@hf_peft"], "lr": 0.01}}
    second, recipe = made(tmp_path / "world", groups, tuners=lora)
    before = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    taken, fresh = store.start_from(tmp_path / "run", second, store.groups_of(second, recipe))
    assert taken == len(list(first.branches["sight"].connector.parameters()))
    assert fresh and all("lora_" in name for name in fresh)
    for name, tensor in second.state_dict().items():
        if ".connector." in name:
            assert (tensor == 0.5).all()
        else:
            assert torch.equal(tensor, before[name])


def test_weights_of_what_is_frozen_here(tmp_path: Path) -> None:
    norms = {**CONNECTOR, "norms": {"match": ["*norm.weight"], "lr": 0.01}}
    first, recipe = made(tmp_path / "world", norms)
    store.save_run(tmp_path / "run", first, recipe)
    second, recipe = made(tmp_path / "world", CONNECTOR)
    with pytest.raises(CheckpointError, match=r"llm\.model\.model\.layers\.0\.input_layernorm\.weight"):
        store.start_from(tmp_path / "run", second, store.groups_of(second, recipe))


def test_another_shape_and_another_name(tmp_path: Path) -> None:
    first, recipe = made(tmp_path / "world", CONNECTOR)
    store.save_run(tmp_path / "run", first, recipe)
    other = {"sight": {**tree(tmp_path / "world")["model"]["branches"]["sight"]}}
    other["sight"]["connector"] = {"name": "mlp", "depth": 3, "hidden": 5}
    second, recipe = made(tmp_path / "world", CONNECTOR, branches=other)
    with pytest.raises(CheckpointError, match="misshapen"):
        store.start_from(tmp_path / "run", second, store.groups_of(second, recipe))
    other["sight"]["connector"] = {"name": "linear"}
    second, recipe = made(tmp_path / "world", CONNECTOR, branches=other)
    with pytest.raises(CheckpointError, match=r"unexpected: branches\.sight\.connector\.layers"):
        store.start_from(tmp_path / "run", second, store.groups_of(second, recipe))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    model, recipe = made(tmp_path / "world", CONNECTOR)
    with pytest.raises(CheckpointError, match="weights: not there"):
        store.start_from(tmp_path / "nowhere", model, store.groups_of(model, recipe))
