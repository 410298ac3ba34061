"""Who trains moves, who does not stays equal to the bit: weights and optimizer state alike."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config, generate
from mmtune.errors import ConfigError
from mmtune.training import loop, stepper
from tests.training import world


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return world.recipe(tmp_path_factory.mktemp("groups"))


def moments(recipe, monkeypatch, before=None):
    """Names and copies of all tensors, and of all optimizer states, before and after each step; by stream."""
    seen = []
    real = stepper.take_step

    def watched(model, batches, optimizers, groups_by_stream, lr_multipliers, *rest):
        def copy():
            weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            states = {group: {k: t.clone() for k, t in o.state().items()} for group, o in optimizers.items()}
            return weights, states

        if before is not None:
            before(model, batches)
        first = copy()
        outcome = real(model, batches, optimizers, groups_by_stream, lr_multipliers, *rest)
        seen.append(("+".join(dict.fromkeys(batch.stream for batch in batches)), list(lr_multipliers), first, copy()))
        return outcome

    monkeypatch.setattr(stepper, "take_step", watched)
    return seen


def test_a_step_moves_its_own_group_only(recipe, tmp_path, monkeypatch):
    seen = moments(recipe, monkeypatch)
    loop.train(recipe, tmp_path / "run", progress="off")
    assert {stream for stream, *_ in seen} == {"pictures", "words"} and len(seen) == 8
    groups_by_stream = {"pictures": "sight", "words": "speech"}
    names = {"sight": "branches.sight.connector.", "speech": "norm"}
    for stream, active, (old, old_states), (new, new_states) in seen:
        mine = groups_by_stream[stream]
        assert active == [mine]
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        assert all(names[mine] in name for name in moved)
        other = next(group for group in names if group != mine)
        assert old_states[other].keys() == new_states[other].keys()
        assert all(torch.equal(old_states[other][key], new_states[other][key]) for key in old_states[other])
    # the other group had momentum by then, which is what a shared optimizer would have moved it by
    assert seen[-1][2][1]["sight"] and seen[-1][2][1]["speech"]


@pytest.mark.parametrize("answered_first", [False, True])
def test_everything_meant_to_learn_has_moved_after_one_step(recipe, tmp_path, monkeypatch, answered_first):
    """Also when the model was used for answers before, which is where state kept on modules would show."""

    def answer(model, batches):
        model.eval()
        generate.answer_batch(model, [first_example(batches[0])], {0}, max_tokens=2)
        model.train()

    seen = moments(recipe, monkeypatch, answer if answered_first else None)
    loop.train(recipe, tmp_path / "run", progress="off")
    first = {}
    for stream, _, (old, _), (new, _) in seen:
        first.setdefault(stream, {name for name in old if not torch.equal(old[name], new[name])})
    files = {"pictures": "sight", "words": "speech"}
    for stream, moved in first.items():
        assert moved == set(load_file(tmp_path / f"run/weights/{files[stream]}.safetensors"))


def first_example(batch):
    """The first sample of a batch as an example."""
    from mmtune.types import Example, Slot

    length = int((batch.segments[0] == 1).sum())
    slots, media = [], {}
    for branch, lines in batch.slots.items():
        for number, (row, segment, start, places) in enumerate(lines.tolist()):
            if (row, segment) == (0, 1):
                media.setdefault(branch, []).append(batch.media[branch][number])
                slots.append(Slot(branch, start, places, len(media[branch]) - 1))
    return Example("x", batch.tokens[0, :length], batch.labels[0, :length], tuple(slots), media)


def test_frozen_means_frozen(recipe, tmp_path):
    from mmtune import model as models

    torch.manual_seed(recipe.run.seed)
    before = models.build(recipe.model).state_dict()
    loop.train(recipe, tmp_path / "run", progress="off")
    from mmtune.checkpoint.store import load_run

    model, _, _ = load_run(tmp_path / "run")
    trained = {k for f in (tmp_path / "run/weights").glob("*.safetensors") for k in load_file(f)}
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained


def test_a_frozen_weight_that_moves_is_found(recipe, tmp_path, monkeypatch):
    from mmtune.errors import CheckpointError

    real = stepper.take_step

    def nudge(model, *args):
        with torch.no_grad():
            model.llm.model.get_input_embeddings().weight[0, 0] += 1e-3
        return real(model, *args)

    monkeypatch.setattr(stepper, "take_step", nudge)
    with pytest.raises(CheckpointError, match=r"\bllm\b"):
        loop.train(recipe, tmp_path / "run", progress="off")
    assert not (tmp_path / "run/weights").exists()


def test_metrics_have_the_rates_of_the_groups_that_moved(recipe, tmp_path):
    loop.train(recipe, tmp_path / "run", progress="off")
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        mine, other = ("sight", "speech") if row["stream"] == "pictures" else ("speech", "sight")
        assert f"lr/{mine}" in row and f"lr/{other}" not in row and row[f"norm/{mine}"] > 0


def test_a_parameter_in_no_group_stops_the_run(recipe, tmp_path):
    tree = recipe.model_dump(mode="json")
    tree["groups"]["sight"]["match"] = ["branches.sight.connector.*weight"]
    from mmtune.recipe import Recipe

    with pytest.raises(ConfigError, match=r"connector\.layers\.0\.bias"):
        loop.train(config.validate(Recipe, tree), tmp_path / "run", progress="off")
    tree["model"]["freeze"] = ["branches.sight.connector.*bias"]
    loop.train(config.validate(Recipe, tree), tmp_path / "run", progress="off")
    from mmtune.checkpoint.store import load_run

    load_run(tmp_path / "run")
    assert (tmp_path / "run/weights/_rest.safetensors").exists(), "a drawn bias that nobody trains is kept all the same"
