"""The first step of each stream is looked at: who got no gradient, and who moved although it should not."""

from __future__ import annotations

import json

import pytest
import torch

from mmtune import config
from mmtune.errors import ModelError
from mmtune.recipe import Recipe
from mmtune.training import loop, stepper
from mmtune.training.gradient_check import PATIENCE, GradientCheck
from mmtune.training.optim import GroupOptimizer
from mmtune.training.step import Outcome
from tests.training import world


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return world.tree(tmp_path_factory.mktemp("watch"))


def recipe(tree, changes=None):
    return config.validate(Recipe, config.merge(tree, changes or {}))


def after(monkeypatch, change, only="words"):
    """Do something to the model after every step of a stream."""
    real = stepper.take_step

    def step(model, batches, *args):
        outcome = real(model, batches, *args)
        if batches[0].stream == only:
            with torch.no_grad():
                change(model, args[0])
        return outcome

    monkeypatch.setattr(stepper, "take_step", step)


def test_a_group_of_another_stream_that_moves_is_named(tree, tmp_path, monkeypatch):
    def nudge(model, optimizers):
        model.branches["sight"].connector.layers[0].bias[0] += 1e-6

    after(monkeypatch, nudge)
    with pytest.raises(ModelError, match=r"although words .*sight\.connector\.layers\.0\.bias \(sight\)"):
        loop.train(recipe(tree), tmp_path / "run", progress="off")
    assert not (tmp_path / "run/weights").exists()


def test_optimizer_state_that_moves_is_named(tree, tmp_path, monkeypatch):
    def nudge(model, optimizers):
        optimizers["sight"].load(
            {f"{name}/exp_avg": torch.ones_like(parameter) for name, parameter in optimizers["sight"].named}
        )

    after(monkeypatch, nudge)
    with pytest.raises(ModelError, match=r"/exp_avg \(sight\)"):
        loop.train(recipe(tree), tmp_path / "run", progress="off")


def test_a_group_that_nothing_reaches_is_named(tree, tmp_path, monkeypatch):
    """Its parameters stand in no formula: words train the connector, but no word is a picture."""
    from mmtune.model import MultimodalModel

    real = MultimodalModel.fuse

    def fuse(self, batch, embeds, cache=None):
        cut = {name: type(one)(one.tokens.detach(), one.mask) for name, one in embeds.items()}
        return real(self, batch, cut, cache)

    monkeypatch.setattr(MultimodalModel, "fuse", fuse)
    with pytest.raises(ModelError) as caught:
        loop.train(recipe(tree), tmp_path / "run", progress="off")
    assert "no gradient reached group sight: branches.sight.connector.layers.0.weight" in str(caught.value)
    assert "first step of pictures" in str(caught.value)


def test_a_connector_waits_for_its_media(tree, tmp_path):
    """Text alone trains it in no step; that is no mistake as long as no picture came."""
    both = {"groups": {"sight": {"streams": ["pictures", "words"]}}, "schedule": {"steps": 1, "warmup": 0}}
    assert recipe(tree, both).streams and loop.train(recipe(tree, both), tmp_path / "run", progress="off").finished


def test_text_alone_trains_no_connector(tree, tmp_path):
    """The data has no picture, so nothing can be learned: the run stops by name, however short it is."""
    alone = {"streams": {"pictures": None}, "groups": {"sight": {"streams": ["words"]}, "speech": None}}
    for steps in (1, 8):
        changes = {**alone, "schedule": {"steps": steps, "warmup": 0}}
        with pytest.raises(ModelError) as caught:
            loop.train(recipe(tree, changes), tmp_path / f"run-{steps}", progress="off")
        assert "no gradient reached group sight, and none can: the data of words has nothing for branch sight" in str(
            caught.value
        )
        assert ("the whole run" if steps == 1 else f"the first {PATIENCE} steps of words") in str(caught.value)
        assert not (tmp_path / f"run-{steps}/weights").exists()
    with pytest.raises(ModelError, match="group sight.*words.*branch sight"):
        loop.train(recipe(tree, alone), None, dry_run=True, progress="off")


@pytest.mark.parametrize("workers", [0, 1])
def test_rare_media_are_waited_for(tree, tmp_path, capsys, workers):
    """One picture in many texts, none in the first steps: no mistake, and where it never came, that is said."""
    rare, last = world.shards(tmp_path / "rare", shards=3, each=16, text=True), {}
    last["000099.png"] = world.png("red")
    last["000099.json"] = json.dumps({"conversations": world.said("<image>\nwhat colour is it?", "red")}).encode()
    world.write_tar(tmp_path / "rare" / "part-9999.tar", last)
    alone = {"streams": {"pictures": None, "words": {"data": [rare]}}, "run": {"workers": workers}}
    alone |= {"groups": {"sight": {"streams": ["words"]}, "speech": None}}
    ended = loop.train(recipe(tree, {**alone, "schedule": {"steps": 60, "warmup": 0}}), tmp_path / "a", progress="off")
    assert ended.finished and ended.step == 60
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    came = next(row["step"] for row in rows if row["norm/sight"])
    assert came > PATIENCE, "the picture did not come in the first steps"
    changes = {**alone, "schedule": {"steps": came - 1, "warmup": 0}}
    assert loop.train(recipe(tree, changes), tmp_path / "b", progress="lines").finished
    assert "warning: group sight learned nothing" in capsys.readouterr().out


def test_media_that_never_come_are_waited_for_one_pass(tree, tmp_path):
    """Records name pictures, but none of them can be used: when the data was gone through, the run stops."""
    mixed = world.shards(tmp_path / "mixed", shards=1, each=16, text=True)
    record = {"conversations": world.said("<image>\n?", "red")}
    bad = {"999.png": b"no picture", "999.json": json.dumps(record).encode()}
    world.write_tar(tmp_path / "mixed" / "part-9999.tar", bad)
    alone = {"streams": {"pictures": None, "words": {"data": [mixed]}}, "schedule": {"steps": 60, "warmup": 0}}
    alone |= {"groups": {"sight": {"streams": ["words"]}, "speech": None}}
    with pytest.raises(ModelError, match=r"5 steps of words:[\s\S]*group sight.*branch sight"):
        loop.train(recipe(tree, alone), tmp_path / "run", progress="off")


def test_a_group_that_learned_before_a_stop_is_not_asked_again(tree):
    train_plan = TrainPlan()
    gradient_check = GradientCheck(train_plan, lambda stream, branches: False)
    train_plan.optimizers["one"].load({"branches.sight.connector.w/exp_avg": torch.ones(2)})
    gradient_check.resume()
    gradient_check.before(["a"])
    for _ in range(2 * PATIENCE):
        gradient_check.after(outcome({"one": ["branches.sight.connector.w"]}), ["a"], {}, {"a"})
    assert gradient_check.end() == []


def test_a_group_of_several_streams_waits_for_each(tree):
    """Stages: the first stream is text for long, the second one has pictures."""
    train_plan = TrainPlan()
    train_plan.groups_by_stream = {"a": ["one"], "b": ["one", "two"]}
    asked = []

    def has_media(stream, branches):
        asked.append((stream, sorted(branches)))
        return stream == "b"

    gradient_check = GradientCheck(train_plan, has_media)
    gradient_check.before(["a"])
    for _ in range(3 * PATIENCE):
        gradient_check.after(outcome({"one": ["branches.sight.connector.w"]}), ["a"], {}, {"a"})
    assert asked == [("a", ["sight"]), ("b", ["sight"])], "once"
    with pytest.raises(ModelError, match="a and b.*branch sight"):
        gradient_check.after(outcome({"one": ["branches.sight.connector.w"]}), ["a"], {}, {"a", "b"})


class TrainPlan:
    """Two groups of one parameter each, of streams a and b."""

    def __init__(self, name="branches.sight.connector.w"):
        self.values = {"one": torch.nn.Parameter(torch.ones(2)), "two": torch.nn.Parameter(torch.ones(2))}
        names = {"one": name, "two": "llm.b"}
        self.optimizers = {g: GroupOptimizer(g, [(names[g], p)], lr=0.1) for g, p in self.values.items()}
        self.groups_by_stream = {"a": ["one"], "b": ["two"]}

    def trained_groups(self, streams):
        return [group for stream in streams for group in self.groups_by_stream[stream]]


def outcome(zero_grad_params, updated=True, unused_groups=("one",)):
    return Outcome(1.0, 1, 1, 1, {}, updated, zero_grad_params=zero_grad_params, unused_groups=frozenset(unused_groups))


def step(gradient_check, stream, zero_grad_params):
    """A step of a stream, in whose groups these parameters have a gradient of zeros."""
    gradient_check.before([stream])
    gradient_check.after(outcome(zero_grad_params, unused_groups=()), [stream], {})


def test_a_gradient_of_zeros_is_waited_for_but_not_for_ever():
    """As behind a gate that begins at zero, or the second factor of LoRA."""
    train_plan = TrainPlan("llm.lora_A")
    zero_grad_params, loud = {"one": ["llm.lora_A"]}, {"one": []}
    for speaks in (True, False):
        gradient_check = GradientCheck(train_plan)
        step(gradient_check, "b", {"two": []})
        for _ in range(PATIENCE - 1):
            step(gradient_check, "a", zero_grad_params)
        assert gradient_check.is_due(["a"])
        if speaks:
            step(gradient_check, "a", loud)
            assert not gradient_check.is_due(["a"])
        else:
            with pytest.raises(ModelError, match=rf"the first {PATIENCE} steps of a:\s+no gradient reached group one"):
                step(gradient_check, "a", zero_grad_params)


def test_zeros_count_when_every_other_group_had_its_turn():
    """Prompts of one stream behind gates of another, which comes late: nothing is wrong with the prompts."""
    train_plan = TrainPlan("llm.prompts")
    shut, gradient_check = {"one": ["llm.prompts"]}, GradientCheck(train_plan)
    for _ in range(3 * PATIENCE):
        step(gradient_check, "a", shut)
    assert gradient_check.end() == ["warning: group one learned nothing: its gradient was zero each time"]
    step(gradient_check, "b", {"two": []})
    for _ in range(PATIENCE - 1):
        step(gradient_check, "a", shut)
    with pytest.raises(ModelError, match="group one: "):
        step(gradient_check, "a", shut)


def test_two_groups_that_are_shut_do_not_wait_for_each_other():
    gradient_check = GradientCheck(TrainPlan("llm.prompts"))
    with pytest.raises(ModelError, match="no gradient reached group"):
        for _ in range(PATIENCE + 1):
            step(gradient_check, "b", {"two": ["llm.b"]})
            step(gradient_check, "a", {"one": ["llm.prompts"]})


def test_media_of_another_stream_in_the_same_step_are_not_waited_for_in_vain(tree, tmp_path):
    """Texts of which few have pictures train the connector; the pictures of each mixed step train something else."""
    rare, record = world.shards(tmp_path / "rare", shards=3, each=16, text=True), world.said("<image>\n?", "red")
    last = {"000099.png": world.png("red"), "000099.json": json.dumps({"conversations": record}).encode()}
    world.write_tar(tmp_path / "rare" / "part-9999.tar", last)
    groups = {"sight": {"streams": ["words"]}, "speech": {"streams": ["pictures"]}}
    mixed = {
        "schedule": {"steps": 20, "warmup": 0, "interleave": "mixed"},
        "run": {"accumulate": 2, "batch_tokens": 64},
    }
    made = recipe(tree, {"streams": {"words": {"data": [rare]}}, "groups": groups, **mixed})
    assert loop.train(made, tmp_path / "run", progress="off").finished
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert next(row["step"] for row in rows if row["norm/sight"]) > PATIENCE, "the picture came late"


def test_factors_of_lora_with_rates_of_their_own_train(tree, tmp_path):
    lora = {"name": "hf_peft", "method": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    groups = {
        "first": {"match": ["*.lora_A.*"], "lr": 1e-3, "streams": ["words"]},
        "second": {"match": ["*.lora_B.*"], "lr": 1.6e-2, "streams": ["words"]},
        "speech": None,
    }
    made = config.merge(tree, {"model": {"tuners": [lora]}, "groups": groups})
    made["groups"] = {name: group for name, group in made["groups"].items() if group is not None}
    assert loop.train(config.validate(Recipe, made), tmp_path / "run", progress="off").finished


def test_each_stream_is_looked_at_once_and_a_silent_group_until_it_speaks():
    train_plan = TrainPlan()
    gradient_check = GradientCheck(train_plan)
    zero_grad_params, loud = {"one": ["branches.sight.connector.w"]}, {"one": []}
    gradient_check.before(["a"])
    gradient_check.after(outcome(zero_grad_params, updated=False), ["a"], {"a": {"sight"}})
    assert gradient_check.is_due(["a"]), "a step in which nothing moved does not count"
    gradient_check.after(outcome(zero_grad_params), ["a"], {})
    assert gradient_check.is_due(["a"]), "it waits for a picture"
    with pytest.raises(ModelError, match="group one: "):
        gradient_check.after(outcome(zero_grad_params), ["a"], {"a": {"sight"}})
    gradient_check.after(outcome(loud), ["a"], {"a": {"sight"}})
    assert not gradient_check.is_due(["a"]) and gradient_check.is_due(["b"])


@pytest.mark.parametrize(
    ("name", "media", "waits"),
    [
        ("branches.sight.connector.w", {"sound"}, True),
        ("branches.sight.connector.w", {"sight"}, False),
        ("fusion.gates.w", set(), True),
        ("fusion.gates.w", {"sound"}, False),
        ("llm.norm.w", set(), False),
    ],
)
def test_what_waits_for_which_media(name, media, waits):
    gradient_check = GradientCheck(TrainPlan(name))
    gradient_check.before(["a"])
    if waits:
        gradient_check.after(outcome({"one": [name]}), ["a"], {"a": media})
    else:
        with pytest.raises(ModelError):
            gradient_check.after(outcome({"one": [name]}), ["a"], {"a": media})
