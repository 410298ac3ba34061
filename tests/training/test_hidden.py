"""Whole runs over hidden states: features of several layers of the tower, and a ladder beside the language model.

Trained at once and stopped and taken up to the same bits, from stored features too; answers read into a cache are those
read anew.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.data.features import FeatureCache
from mmtune.generate import answer_batch, stream
from mmtune.recipe import Recipe
from mmtune.training import loop
from mmtune.types import MediaRef, Sample, Turn
from tests.encoders.tiny import hf_folder
from tests.test_generate import naive
from tests.training import world

SHIPPED = "llava_1_5_7b_layers_stage1"
LADDER = {
    "model": {"fusion": {"name": "ladder", "ratio": 4, "heads": 2}},
    "groups": {
        "sight": {"match": ["branches.sight.connector.*"], "streams": [], "lr": 0.02},
        "speech": {"match": ["fusion.*"], "streams": [], "lr": 0.02},
    },
}


def layers_recipe(folder):
    """The shipped recipe with small parts and data of its own, and two layers where the small tower has three."""
    own = world.tree(folder)
    tree = config.read(SHIPPED)
    tree["model"]["llm"] = own["model"]["llm"]
    encoder = tree["model"]["branches"]["sight"]["encoder"]
    assert len(encoder["layers"]) > 1
    encoder |= {"weights": str(hf_folder(folder / "eye")), "layers": [-2, 0]}
    tree["streams"]["caption"] |= {**own["streams"]["pictures"], "data": own["streams"]["pictures"]["data"]}
    tree["schedule"] |= {"steps": 6, "warmup": 1}
    tree["run"] = {**own["run"], "feature_cache": str(folder / "features")}
    tree["chat"] = own["chat"]
    return config.validate(Recipe, tree)


def ladder_recipe(folder):
    return world.recipe(folder, LADDER, too_long="cut", feature_cache=str(folder / "features"))


@pytest.fixture(scope="module", params=[layers_recipe, ladder_recipe], ids=["layers", "ladder"])
def trained(request, tmp_path_factory):
    """(recipe, folder of a run without a break)"""
    folder = tmp_path_factory.mktemp("hidden")
    recipe = request.param(folder)
    assert loop.train(recipe, folder / "straight", progress="off").finished
    return recipe, folder / "straight"


def test_stopped_and_taken_up_it_is_the_same_run(trained, tmp_path, monkeypatch):
    recipe, straight = trained
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "code", property(lambda self: 143, lambda self, value: None), raising=False)
        assert not loop.train(recipe, tmp_path / "run", progress="off").finished
    assert loop.train(recipe, tmp_path / "run", resume=True, progress="off").finished
    files = sorted(path.relative_to(straight) for path in (straight / "weights").glob("*.safetensors"))
    assert files and all((straight / file).read_bytes() == (tmp_path / "run" / file).read_bytes() for file in files)


def test_all_that_is_meant_to_learn_has_moved(trained):
    recipe, straight = trained
    model, _, _ = store.load_run(straight)
    begun = dict(models.build(recipe.model, seed=recipe.run.seed).named_parameters())
    names = [name for file in (straight / "weights").glob("*.safetensors") for name in load_file(file)]
    still = [name for name in names if torch.equal(model.get_parameter(name), begun[name])]
    assert names and still == []


def test_answers_are_those_read_anew(trained):
    """Token by token, and in batches whose rows end at different times."""
    model, processor, _ = store.load_run(trained[1])
    examples = [
        processor.example(Sample("s", (Turn("user", parts),)), answer=True)
        for parts in ((ref("red"), "what colour is it?"), (ref("blue"), "what"), ("say red 1",))
    ]
    with torch.no_grad():
        expected = [naive(model, example, 6) for example in examples]
    assert [list(stream(model, example, (), max_tokens=6)) for example in examples] == expected
    stops = {expected[0][3], expected[1][1]}
    alone = [list(stream(model, example, stops, max_tokens=6)) for example in examples]
    assert answer_batch(model, examples, stops, max_tokens=6) == alone


def test_stored_features_hold_all_layers(trained):
    recipe, straight = trained
    model, _, _ = store.load_run(straight)
    encoder = model.branches["sight"].encoder
    layers = len(recipe.model.branches["sight"].encoder.layers or [None])
    kept = FeatureCache(recipe.run.feature_cache, model.branches)
    got = kept.get("sight", MediaRef("image", world.png("red", 0), "a.png"))
    assert got is not None and got.shape == (1, encoder.tokens_per_frame, layers * 32)
    assert encoder.shape.layers == layers and model.branches["sight"].connector.shape.layer_width == 32
    tree = config.override(recipe.model_dump(mode="json"), "model.branches.sight.encoder.layers=[0, -1]")
    other = models.build(config.validate(Recipe, tree).model)
    assert other.branches["sight"].encoder.fingerprint() != encoder.fingerprint()


def ref(colour):
    return MediaRef("image", world.png(colour), f"{colour}.png")
