"""Gradients by two points: right on average, without a backward pass, and weights that come back to the bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmtune import config, train
from mmtune.commands import plan
from mmtune.errors import ConfigError
from mmtune.objectives.base import ObjectiveConfig
from mmtune.params import GradientSection
from mmtune.recipe import Recipe
from mmtune.training import nonfinite, replay
from mmtune.training.distributed import Runtime
from mmtune.training.gradients import OutOfMemory, TwoPoint, backward, gradients_of
from mmtune.training.optim import GroupOptimizer
from mmtune.training.step import take_step
from tests.losses import OfModel, Streams
from tests.training import world
from tests.training.test_step import CUTS, Toy, equal, rows, values

GROUPS = ("a", "b")


def named(model):
    return [(name, parameter) for name, parameter in model.named_parameters()]


def estimate(model, gradients, batches=None):
    """The gradient in one row, and what the passes counted."""
    tally = gradients(model, batches or [rows(0, 8)], Streams()["s"], named(model), Runtime("cpu"))
    row = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return row, tally


def two_point(epsilon=1e-3, directions=1, seed=0, step=0):
    return TwoPoint(epsilon, directions, seed, step)


def test_many_directions_come_to_the_gradient():
    exact, tally = estimate(Toy(), backward)
    near, counted = estimate(Toy(), two_point(directions=400))
    assert torch.cosine_similarity(exact, near, dim=0) > 0.9
    assert float(near.norm() / exact.norm()) == pytest.approx(1, abs=0.2)
    assert counted.counts == tally.counts and counted.tokens == tally.tokens
    assert counted.loss == pytest.approx(tally.loss, rel=1e-4)


def test_one_direction_has_the_slope_that_the_gradient_has_along_it():
    model = Toy()
    exact, _ = estimate(model, backward)
    found, _ = estimate(model, two_point(1e-2))
    noise = torch.cat([two_point()._noise(f"s 0 {name}", p).flatten() for name, p in named(model)])
    assert torch.allclose(found, (exact @ noise) * noise, rtol=0.02)


def test_a_direction_follows_from_seed_step_stream_and_name():
    parameter = nn.Parameter(torch.zeros(3, 4))
    same = two_point(seed=1, step=2)._noise("s 0 w", parameter)
    torch.manual_seed(99)
    assert torch.equal(two_point(seed=1, step=2)._noise("s 0 w", parameter), same)
    others = [two_point(seed=2, step=2), two_point(seed=1, step=3)]
    assert not any(torch.equal(other._noise("s 0 w", parameter), same) for other in others)
    assert not any(torch.equal(two_point(seed=1, step=2)._noise(what, parameter), same) for what in ("s 1 w", "t 0 w"))


@pytest.mark.parametrize("epsilon", [1e-3, 1.0])
def test_weights_come_back_to_the_bit(epsilon):
    model = Toy()
    before = values(model)
    estimate(model, two_point(epsilon, directions=3))
    assert equal(values(model), before)


@pytest.mark.parametrize("after", [0, 1])
def test_weights_come_back_where_there_is_no_room(after):
    model, calls = Toy(), []
    before, real = values(model), model.loss

    def loss(batch):
        calls.append(equal(values(model), before))
        model.poison = "no room" if len(calls) > after else None
        return real(batch)

    model.loss = loss
    with pytest.raises(OutOfMemory):
        estimate(model, two_point())
    assert calls == [False] * (after + 1) and equal(values(model), before)


def test_nothing_is_kept_for_a_backward_pass():
    model, kept = Toy(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        estimate(model, two_point())
        assert not kept
        estimate(model, backward)
        assert kept


def test_both_points_see_the_same_random_numbers():
    """Other dropout at each would drown a slope in noise over the distance."""
    model = Toy()
    plain = model.loss
    model.loss = lambda batch: plain(batch) * (1 + torch.rand(()))
    torch.manual_seed(0)
    found, _ = estimate(model, two_point(1e-3))
    after = torch.rand(())
    torch.manual_seed(0)
    model.loss = plain
    exact, _ = estimate(model, two_point(1e-3))
    assert torch.allclose(found, exact * (1 + torch.rand(())), rtol=1e-2)
    assert after == torch.rand(()), "one pass is drawn for, not two"


def test_losses_and_measures_are_means_over_all_points():
    class Moved(OfModel):
        """Measures how far the first weight stands from where it was."""

        measures = {"moved": "lower"}

        def counts(self, batch):
            return {**super().counts(batch), "moved": 1}

        def loss(self, model, batch):
            seen.append(model.a.weight[0, 0].item() - start)
            return {**super().loss(model, batch), "moved": model.a.weight[0, 0] - start}

    model, seen = Toy(), []
    start = model.a.weight[0, 0].item()
    rest = ([rows(0, 8)], Moved(ObjectiveConfig(name="test")), named(model), Runtime("cpu"))
    tally = two_point(0.1, directions=2)(model, *rest)
    assert len({round(value, 6) for value in seen}) == 4 and seen[0] == pytest.approx(-seen[1], abs=1e-6)
    assert tally.measures["moved"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", list(CUTS)[1:])
def test_cutting_up_changes_nothing(name):
    whole, _ = estimate(Toy(), two_point(1e-2))
    found, _ = estimate(Toy(), two_point(1e-2), [rows(*cut) for cut in CUTS[name]])
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)


def stepped(poison=None, steps=1, gradients=None):
    model = Toy()
    model.poison = poison
    optimizers = {
        group: GroupOptimizer(group, [pair for pair in named(model) if pair[0].startswith(group)], lr=0.05)
        for group in GROUPS
    }
    losses = []
    for step in range(steps):
        outcome = take_step(
            model,
            [rows(0, 4), rows(4, 8)],
            optimizers,
            {"s": GROUPS},
            dict.fromkeys(GROUPS, 1.0),
            Runtime("cpu"),
            Streams(),
            check_grads=True,
            gradients=gradients or two_point(step=step),
        )
        losses.append(outcome.loss)
    return model, outcome, losses


def test_it_learns():
    _, outcome, losses = stepped(steps=150)
    _, _, (first, *_, best) = stepped(steps=150, gradients=backward)
    assert outcome.updated and losses[0] == pytest.approx(first, rel=1e-5)
    assert losses[-1] < best + 0.2 * (first - best)
    assert outcome.zero_grad_params == {"a": [], "b": []} and not outcome.unused_groups


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_moves_nothing(poison):
    model, outcome, _ = stepped(poison)
    assert not outcome.updated and equal(values(model), values(Toy()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_recipe_says_where_gradients_come_from(tmp_path):
    recipe = world.recipe(tmp_path, {"run": {"gradient": "two_point"}})
    assert gradients_of(recipe.run.gradient, 3, 4) == TwoPoint(1e-3, 1, 3, 4)
    assert world.recipe(tmp_path).run.gradient == GradientSection(name="backward")
    assert gradients_of(GradientSection(name="backward"), 3, 4) is backward
    for wrong, words in (
        ({"name": "backward", "epsilon": 0.1}, "run.gradient: backward has no epsilon"),
        ({"epsilon": 0.1}, "run.gradient.name: missing"),
        ({"name": "two_point", "epsilon": 0}, "run.gradient.epsilon: input should be greater than 0"),
        ("three_point", "run.gradient.name: input should be 'backward' or 'two_point'"),
    ):
        with pytest.raises(ConfigError, match=words):
            world.recipe(tmp_path, {"run": {"gradient": wrong}})


def weights(run):
    found = [(file.name, load_file(file)) for file in sorted(run.glob("weights/*.safetensors"))]
    return {f"{file}: {name}": tensor for file, tensors in found for name, tensor in tensors.items()}


def test_a_run_stops_goes_on_and_names_a_sample_that_is_not_finite(tmp_path, monkeypatch):
    lora = {"name": "hf_peft", "method": "lora", "r": 2, "lora_dropout": 0.2, "target_modules": ["q_proj"]}
    changes = {
        "model": {"tuners": [lora]},
        "groups": {"sight": {"optimizer": "sgd"}, "speech": {"match": ["@hf_peft"], "lr": 1e-2}},
        "run": {"gradient": {"name": "two_point", "directions": 2}},
        "schedule": {"steps": 4, "warmup": 0},
    }
    recipe = world.recipe(tmp_path, changes, save_every=2)
    train(recipe, tmp_path / "whole", progress="off")
    train(recipe, tmp_path / "run", progress="off")
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000004")
    assert train(recipe, tmp_path / "run", resume=True, progress="off").finished
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    enabled = []
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: enabled.append(True))
    trials = replay.replay(tmp_path / "run", ["part-0000/000001"], device="cpu")[1]
    assert trials and all(trial.finite and not trial.norms for trial in trials) and not enabled
    assert "gradient not taken" in nonfinite.report(trials)[0]


def test_a_loss_that_reaches_nothing_is_named(tmp_path, monkeypatch):
    """All estimates are zero then, as gradients are."""
    from mmtune.errors import ModelError
    from mmtune.objectives.cross_entropy import CrossEntropy

    real = CrossEntropy.loss

    def still(self, model, batch):
        return {term: value * 0 + 1 for term, value in real(self, model, batch).items()}

    monkeypatch.setattr(CrossEntropy, "loss", still)
    tree = world.tree(tmp_path)
    tree["run"]["gradient"], tree["schedule"]["steps"] = "two_point", 24
    with pytest.raises(ModelError, match="no gradient reached group"):
        train(config.validate(Recipe, tree), tmp_path / "run", progress="off")


def test_plan_counts_forward_passes_alone():
    devices = plan.Devices(2, 80.0, 989.0, 0.4, 400.0)
    row = "shard_all"

    def cells(*changes):
        said = plan.lines("llava_1_5_7b_lora", list(changes), devices)
        return next(line for line in said if line.startswith(row)).split()

    kept, none = cells(), cells("run.gradient=two_point")
    assert (kept[1], none[1]) == ("kept", "none")
    assert float(none[3]) == pytest.approx(2 * float(kept[3]), abs=0.1), "the estimate, and a copy of the weights"
    assert float(none[5]) < 0.1 * float(kept[5]), "nothing is kept for a backward pass"
    twice = cells("run.gradient={name: two_point, directions: 2}")
    assert float(twice[-2]) == pytest.approx(2 * float(none[-2]), rel=0.02)
    assert float(twice[-1]) == pytest.approx(2 * float(none[-1]), rel=0.02)
