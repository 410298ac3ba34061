"""States that were saved before a field of a recipe was there are gone on with, and nothing else is let through."""

import pytest

from mmtune import config
from mmtune.errors import CheckpointError
from mmtune.recipe import Recipe
from mmtune.training import resume as states
from mmtune.training.loop import train
from mmtune.training.older import with_new_fields
from tests.training import world


def test_new_fields_at_their_default_are_added():
    now = config.load(Recipe, "pocket_joint")
    plain = now.model_dump(mode="json")
    old = now.model_dump(mode="json")
    for stream in old["streams"].values():
        del stream["order"]
    del old["run"]["keep"], old["limits"]
    assert with_new_fields(old, plain, now) == plain
    del plain["run"]["keep"], old["run"]["max_bad_in_a_row"]
    assert with_new_fields(old, plain, now)["run"] == plain["run"], "what is not compared is not added"


def test_a_new_field_with_another_value_stays_a_difference():
    now = config.load(Recipe, "pocket_joint", ["run.accumulate=3"])
    old = now.model_dump(mode="json")
    del old["run"]["accumulate"], old["groups"]
    filled = with_new_fields(old, now.model_dump(mode="json"), now)
    assert "accumulate" not in filled["run"] and "groups" not in filled


@pytest.mark.parametrize("order", ["shuffle", "length_grouped"])
def test_a_run_of_the_version_before_goes_on(tmp_path, monkeypatch, order):
    """Its state says nothing of an order: it is the one that there was."""
    changes = [f"streams.words.order={order}", "schedule.steps=3"]
    recipe = config.load(Recipe, _written(tmp_path), changes)
    stopped = config.load(Recipe, _written(tmp_path), ["schedule.steps=3", "run.stop_after_minutes=0.000001"])
    assert train(stopped, tmp_path / "run", progress="off").step == 1
    load = states.load

    def aged(*args, **more):
        state = load(*args, **more)
        for stream in state.info["facts"]["recipe"]["streams"].values():
            del stream["order"]
        return state

    monkeypatch.setattr(states, "load", aged)
    if order == "shuffle":
        assert train(recipe, tmp_path / "run", resume=True, progress="off").step == 3
    else:
        with pytest.raises(CheckpointError, match=r"streams\.words\.order"):
            train(recipe, tmp_path / "run", resume=True, progress="off")


def _written(folder):
    path = folder / "recipe.yaml"
    if not path.exists():
        path.write_text(config.dump(world.recipe(folder / "world")))
    return path
