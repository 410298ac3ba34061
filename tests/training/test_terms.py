"""A loss of several terms: each is a mean over its own things, however a step is cut and on however many ranks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mmtune.errors import ConfigError
from mmtune.objectives.base import ObjectiveConfig
from mmtune.training import loop, stepper, terms
from mmtune.training.distributed import Runtime
from mmtune.training.nonfinite import run_alone
from mmtune.training.setup import build
from mmtune.training.step import take_step
from tests.losses import RowsAndTokens, Streams
from tests.training import world
from tests.training.test_step import CUTS, WIDTH, Toy, children, close, equal, rows, setup, values

ASKED = Streams(RowsAndTokens(ObjectiveConfig(name="test")))


class Both(Toy):
    """Has a loss by row, too: how large the hidden states are."""

    def rows(self, batch):
        x = torch.nn.functional.one_hot(batch.tokens, WIDTH).float()
        return torch.tanh(self.a(x)).square().sum()


def step(cuts, times=2):
    model, optimizers, runtime = setup(Both)
    for _ in range(times):
        batches = [rows(*cut) for cut in cuts]
        outcome = take_step(model, batches, optimizers, {"s": ["a", "b"]}, {"a": 1.0, "b": 1.0}, runtime, ASKED)
    return outcome, values(model)


@pytest.mark.parametrize("name", list(CUTS)[1:])
def test_each_term_is_its_own_mean_however_a_step_is_cut(name):
    """Pieces have other quotients of rows to tokens than the whole: a term scaled by its piece alone would differ."""
    whole, weights = step(CUTS["1x8"])
    outcome, others = step(CUTS[name])
    assert close(weights, others)
    assert outcome.loss == pytest.approx(whole.loss, rel=1e-6)
    assert outcome.terms == {"s": pytest.approx(whole.terms["s"], rel=1e-6)}


def test_the_numbers_are_those_of_the_formula():
    model, batch = Both(), rows(0, 8)
    outcome, _ = step(CUTS["uneven"], times=1)
    tokens, each = float(model.loss(batch).detach()) / 36, float(model.rows(batch).detach()) / 8
    assert outcome.terms["s"] == pytest.approx({"loss": tokens, "rows": each}, rel=1e-6)
    assert outcome.loss == outcome.losses["s"] == pytest.approx(tokens + each, rel=1e-6)
    assert outcome.loss_values().keys() == {"loss/s", "loss/s/loss", "loss/s/rows"}


CHILD = """
import json
from tests.training.test_terms import *
cuts = [[(0, 1)], [(1, 8)]][Runtime("cpu").rank]
outcome, weights = step(cuts)
print(json.dumps([outcome.loss, outcome.terms["s"], {name: tensor.tolist() for name, tensor in weights.items()}]))
Runtime("cpu").close()
"""


def test_two_ranks_are_one():
    whole, weights = step(CUTS["1x8"])
    left, right = (json.loads(output.strip().splitlines()[-1]) for output in children(CHILD, []))
    assert left == right
    assert left[0] == pytest.approx(whole.loss, rel=1e-6) and left[1] == pytest.approx(whole.terms["s"], rel=1e-6)
    assert close({name: torch.tensor(tensor) for name, tensor in left[2].items()}, weights)


def test_a_term_of_which_there_is_nothing():
    """Counts of 0 divide nothing, and what is not finite is not hidden by that."""
    assert terms.total({"a": 3.0, "b": 0.0}, {"a": 2.0, "b": 0.0}) == 3.0
    assert terms.total({"a": 3.0, "b": float("nan")}, {"a": 2.0, "b": 0.0}) != 3.0
    assert terms.means({"a": 3.0, "b": 0.0}, {"a": 2.0, "b": 0.0}) == {"a": 1.5}
    assert terms.means({"a": 3.0}, {"a": 2.0}) == {}


def test_a_term_that_was_not_counted_stops_the_run():
    with pytest.raises(ConfigError, match="a loss of a, c.*\n.*counts: a, b"):
        terms.total({"a": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0})


def test_a_term_that_is_not_finite_moves_nothing():
    model, optimizers, runtime = setup(Both)
    model.rows = lambda batch: model.a.weight.sum() * float("nan")
    outcome = take_step(model, [rows(0, 8)], optimizers, {"s": ["a", "b"]}, {"a": 1.0, "b": 1.0}, runtime, ASKED)
    assert not outcome.updated and equal(values(model), values(Both()))
    how, groups = SimpleNamespace(name="backward"), {"s": ["a", "b"]}
    plan = SimpleNamespace(objectives=ASKED, gradient=how, groups_by_stream=groups, optimizers=optimizers)
    assert not run_alone(model, rows(0, 1), plan, runtime).finite


# -------------------------------------------------------------------------------------------- what an objective keeps

CHANGES = {"streams": {"words": {"objective": {"name": "tests.losses:Remembers", "z_loss": 0.01}}}}


def weights(run):
    files = sorted((run / "weights").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return world.recipe(tmp_path_factory.mktemp("world"), CHANGES, save_every=3)


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    loop.train(recipe, out, progress="off")
    return out


def stopped(recipe, out, monkeypatch, step=5):
    real, steps = stepper.take_step, []

    def dies(*args, **more):
        steps.append(1)
        if len(steps) == step:
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stepper, "take_step", dies)
        loop.train(recipe, out, progress="off")


def test_a_run_goes_on_with_the_state_of_its_objectives(recipe, straight, tmp_path, monkeypatch):
    stopped(recipe, tmp_path, monkeypatch)
    loop.train(recipe, tmp_path, resume=True, progress="off")
    one, other = weights(straight), weights(tmp_path)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    (last,) = sorted((straight / "state").glob("step-*"))[-1:]
    assert load_file(last / "optimizer.@objective.words.safetensors")["seen"] > 0
    assert not (last / "optimizer.@objective.pictures.safetensors").exists()


def test_an_objective_without_its_state_is_seen(recipe, straight, tmp_path, monkeypatch):
    """What this guards against: begun anew, it goes another way."""
    from tests.losses import Remembers

    stopped(recipe, tmp_path, monkeypatch)
    monkeypatch.setattr(Remembers, "load", lambda self, tensors: None)
    loop.train(recipe, tmp_path, resume=True, progress="off")
    one, other = weights(straight), weights(tmp_path)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_an_objective_may_be_changed_where_that_is_allowed(recipe, tmp_path, monkeypatch, capsys):
    """A state that nobody takes, or that is not there, is said and stops nothing."""
    stopped(recipe, tmp_path, monkeypatch)
    tree = recipe.model_dump()
    tree["streams"]["words"]["objective"] = {"name": "cross_entropy"}
    other = type(recipe).model_validate(tree)
    loop.train(other, tmp_path, resume=True, progress="lines", allow=["recipe", "code"])
    assert "the state of @objective.words is not used" in capsys.readouterr().out


def test_an_objective_begins_with_the_groups_of_the_run(recipe):
    built = build(recipe, None, Runtime("cpu"))
    assert built.train_plan.objectives["words"].begun == sorted(recipe.groups)
