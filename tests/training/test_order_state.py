"""An order that asks what validations found: the same when the run is stopped in the middle of an epoch."""

import json
import tarfile

import pytest

from mmtune import config
from mmtune.data import index
from mmtune.errors import ConfigError
from mmtune.recipe import Recipe
from mmtune.training.loop import train
from tests.training import world


def with_difficulty(folder):
    """Give each record of some shards a number."""
    for number, shard in enumerate(sorted(folder.glob("*.tar"))):
        with tarfile.open(shard) as tar:
            members = {one.name: tar.extractfile(one).read() for one in tar.getmembers()}
        for place, name in enumerate(name for name in members if name.endswith(".json")):
            facts = {**json.loads(members[name]), "difficulty": (number + place * 3) % 8 - 4}
            members[name] = json.dumps(facts).encode()
        world.write_tar(shard, members)
    index.index_shards([str(folder / "*.tar")])


def test_a_run_by_ability_goes_on_as_if_nothing_had_happened(tmp_path):
    order = {"name": "item_response", "measure": "words/loss"}  # a loss above 1 counts as able for all
    changes = {"streams": {"words": {"order": order}}, "eval": {"every": 1, "fraction": 0.3}, "schedule": {"steps": 10}}
    tree = config.merge(world.tree(tmp_path / "world", save_every=1), changes)
    with_difficulty(tmp_path / "world" / "words")
    recipe = config.validate(Recipe, tree)
    train(recipe, tmp_path / "straight", progress="off")
    for minutes in (0.000001, None):
        run = recipe.run.model_copy(update={"stop_after_minutes": minutes})
        for _ in range(4 if minutes else 1):
            train(recipe.model_copy(update={"run": run}), tmp_path / "cut", resume=True, progress="off")
    runs = [tmp_path / name / "state" / "step-00000010" for name in ("straight", "cut")]
    one, two = (json.loads((run / "run.json").read_text())["positions"] for run in runs)
    assert one == two and one["streams"]["words"]["epoch"] >= 1 and "words/loss" in one["measures"]
    assert one["streams"]["words"]["order"]["order"]["ability"] > 6
    weights = [(run / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("validation", [{}, {"every": 1, "fraction": 0.3}])
def test_an_order_that_asks_for_what_no_validation_measures_is_refused_at_once(tmp_path, validation):
    order = {"name": "item_response", "measure": "qa/exact_match"}
    changes = {"streams": {"words": {"order": order}}, "eval": validation}
    tree = config.merge(world.tree(tmp_path / "world"), changes)
    with_difficulty(tmp_path / "world" / "words")
    with pytest.raises(ConfigError) as caught:
        train(config.validate(Recipe, tree), tmp_path / "run", progress="off")
    assert "streams.words.order" in caught.value.seen and "qa/exact_match" in caught.value.seen
    assert "eval" in caught.value.hint and not (tmp_path / "run" / "state").exists()
