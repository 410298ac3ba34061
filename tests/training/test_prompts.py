"""Whole runs with prompts: joint training of disjoint groups with early fusion, stage after stage with added prompts,
packed rows, stored and read back, answered in batches as alone."""

from __future__ import annotations

import pytest
import torch

from mmtune.checkpoint import store
from mmtune.generate import answer_batch, stream
from mmtune.model import MultimodalModel
from mmtune.training import loop
from mmtune.types import Sample, Turn
from tests.test_generate import naive
from tests.training import world

CONNECTOR = {"name": "query_blocks", "queries": 3, "width": 8, "depth": 1, "heads": 2}
EARLY = {
    "model": {
        "branches": {"sight": {"connector": CONNECTOR}},
        "fusion": {"name": "early_prompts", "layers": 1},
        "tuners": [{"name": "bias_norm", "norms": "all"}, {"name": "prompts", "length": 2}],
    },
    "groups": {
        "sight": {"match": ["branches.sight.connector.*", "fusion.*"], "streams": ["pictures"], "lr": 0.01},
        "speech": {"match": ["@prompts", "@bias_norm"], "streams": ["words"], "lr": 0.01, "betas": [0.9, 0.95]},
    },
    "schedule": {"steps": 8, "warmup": 2, "kind": "half_cosine"},
}
ADDED = {
    "model": {
        "branches": {"sight": {"connector": CONNECTOR}},
        "fusion": {"name": "added_prompts", "length": 3, "default_image_branch": "sight", "spare_gates": True},
    },
    "groups": {
        "sight": {"match": ["branches.sight.connector.*", "fusion.*"], "streams": [], "lr": 0.01},
        "speech": {"match": ["llm.*norm*"], "streams": [], "lr": 0.01},
    },
}


@pytest.fixture(scope="module", params=[EARLY, ADDED], ids=["early", "added"])
def trained(request, tmp_path_factory):
    """Batches that the model was given, its weights before the first of them, the run folder, and which of the two."""
    folder = tmp_path_factory.mktemp("prompts")
    recipe, seen, first, real = world.recipe(folder, request.param, too_long="cut"), [], {}, MultimodalModel.encode

    def watched(model, batch, known=None):
        first.update({} if seen else {name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
        seen.append(batch)
        return real(model, batch, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultimodalModel, "encode", watched)
        loop.train(recipe, folder / "run", progress="off")
    return seen, first, folder / "run", request.param


def test_everything_meant_to_learn_has_moved_and_nothing_else(trained):
    seen, first, run, which = trained
    model, _, recipe = store.load_run(run)
    assert {batch.stream for batch in seen} == {"pictures", "words"}
    assert any((batch.segments > 1).any() for batch in seen), "nothing was packed"
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, first[name])}
    meant = {name for named in store.groups_of(model, recipe).values() for name, _ in named}
    # a gate in a layer without prompts stays where it is
    assert moved == meant - ({"fusion.prompts.gates.0.weight"} if which is ADDED else set())


def test_text_alone_is_shown_nothing_or_an_all_zero_picture(trained):
    seen, _, _, which = trained
    for batch in [batch for batch in seen if batch.stream == "words"]:
        if which is EARLY:
            assert batch.media == {} and batch.slots == {}
            continue
        assert not batch.media["sight"].any() and not batch.slots["sight"][:, 3].any()
        assert len(batch.slots["sight"]) == int(batch.segments.amax(1).sum())


def test_answers_with_prompts(trained):
    """Cached decoding equals reading anew, batches equal alone, also for rows with and without pictures together."""
    model, processor, _ = store.load_run(trained[2])
    for gate in model.fusion.prompts.gates.values():
        torch.nn.init.constant_(gate.weight, 0.9)  # a few steps open the gates by little
    red, blue = (ref(world.png(colour), colour) for colour in ("red", "blue"))
    examples = [
        processor.example(Sample("s", (Turn("user", parts),)), answer=True)
        for parts in ((red, "what colour is it?"), ("say red 1",), (blue, "what colour"), (red, "is", blue, "it"))
    ]
    with torch.no_grad():
        expected = [naive(model, example, 6) for example in examples]
    assert [list(stream(model, example, (), max_tokens=6)) for example in examples] == expected
    stops = {expected[0][3], expected[1][1]}
    alone = [list(stream(model, example, stops, max_tokens=6)) for example in examples]
    assert answer_batch(model, examples, stops, max_tokens=6) == alone
    assert len({len(answer) for answer in alone}) > 1


def test_chat_over_stored_features(trained):
    """The engine keeps features and not pictures; what it says is the same."""
    from mmtune.serve.engine import Engine

    model, processor, _ = store.load_run(trained[2])
    for parts in ((ref(world.png("red"), "red"), "what colour is it?"), ("say red 1",)):
        sample = Sample("s", (Turn("user", parts),))
        example = processor.example(sample, answer=True)
        wanted = list(stream(model, example, (), max_tokens=5))
        fresh, other, _ = store.load_run(trained[2])
        engine = Engine(trained[2], fresh, other)
        engine.processor.stops = frozenset()
        prompt = engine.prompt(sample)
        assert list(engine.stream(prompt, max_tokens=5, temperature=0.0, seed=0)) == wanted
        assert torch.equal(prompt.example.tokens, example.tokens)


def ref(data: bytes, name: str):
    from mmtune.types import MediaRef

    return MediaRef("image", data, f"{name}.png")
