"""Runs whose groups have optimizers of their own: they resume to the bit, on ranks too, and say what does not fit."""

from __future__ import annotations

import json
import shutil
import sys
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config, registry, train
from mmtune.checkpoint import seal, store
from mmtune.commands import _groups, plan
from mmtune.errors import CheckpointError, ConfigError, ModelError
from mmtune.optimizers.adamw_8bit import AdamW8bit, AdamW8bitConfig
from mmtune.optimizers.muon import Muon, MuonConfig
from mmtune.recipe import Recipe
from mmtune.training.optim import GroupOptimizer
from tests.test_additions import ADDITIONS
from tests.training import world

TWO = {"sight": {"optimizer": "muon"}, "speech": {"optimizer": {"name": "sgd", "momentum": 0.9}}}


def groups(**more):
    return {"groups": config.merge(TWO, more)}


def saved(run):
    files = [*(run / "weights").glob("*.safetensors"), *(run / "state").glob("*/*.safetensors")]
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def same(left, right):
    one, two = saved(left), saved(right)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_stops_in_the_middle_ends_with_the_same_bits(tmp_path):
    recipe = world.recipe(tmp_path, groups(), save_every=4)
    train(recipe, tmp_path / "whole", progress="off")
    train(recipe, tmp_path / "run", progress="off")
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000008")
    again = train(recipe, tmp_path / "run", resume=True, progress="off")
    assert again.finished and same(tmp_path / "whole", tmp_path / "run")
    kept = {name.rpartition("/")[2] for name in saved(tmp_path / "run") if name.startswith("optimizer.")}
    assert kept == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


def test_another_optimizer_is_another_recipe_and_its_state_is_refused_by_name(tmp_path):
    recipe = world.recipe(tmp_path, groups())
    train(recipe, tmp_path / "run", progress="off")
    other = config.validate(
        Recipe, config.merge(recipe.model_dump(mode="json"), {"groups": {"sight": {"optimizer": {"name": "adamw"}}}})
    )
    with pytest.raises(CheckpointError, match=r'groups\.sight\.optimizer\.name: "muon" -> "adamw"'):
        train(other, tmp_path / "run", resume=True, progress="off")
    with pytest.raises(CheckpointError, match=r"momentum_buffer.*\n.*'sight', as its optimizer adamw has"):
        train(other, tmp_path / "run", resume=True, progress="off", allow=["recipe"])


def test_a_state_from_before_groups_had_an_optimizer_goes_on(tmp_path):
    """What such a state lacks means adamw; another one is another recipe."""
    recipe = world.recipe(tmp_path, {}, save_every=4)
    train(recipe, tmp_path / "whole", progress="off")
    train(recipe, tmp_path / "run", progress="off")
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000008")
    state = tmp_path / "run" / "state" / "step-00000004"
    info = json.loads((state / "run.json").read_text())
    for group in info["facts"]["recipe"]["groups"].values():
        assert group.pop("optimizer") == {"name": "adamw"}
    assert info["facts"]["recipe"]["run"].pop("gradient")["name"] == "backward"

    def fill(draft):
        for file in state.iterdir():
            if file.suffix == ".safetensors":
                shutil.copy(file, draft / file.name)
        (draft / "run.json").write_text(json.dumps(info))

    seal.write(state, fill)
    changed = config.override(recipe.model_dump(mode="json"), "groups.sight.optimizer=sgd")
    with pytest.raises(CheckpointError, match=r"groups\.sight\.optimizer: null -> .*sgd") as caught:
        train(config.validate(Recipe, changed), tmp_path / "run", resume=True, progress="off")
    assert "speech" not in str(caught.value)
    assert train(recipe, tmp_path / "run", resume=True, progress="off").finished
    assert same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "sgd", "betas": [0.9, 0.95]}, "groups.sight.optimizer: sgd has no betas"),
        ({"optimizer": "adam"}, "optimizers has no 'adam'; .*adamw"),
        ({"optimizer": {"name": "muon", "ns_step": 3}}, "ns_step: unknown key; the known keys are ns_steps"),
        ({"optimizer": {"name": "muon", "momentum": 1}}, "momentum: input should be less than 1"),
        ({"optimizer": 3}, "a mapping with a name is needed, one of adafactor"),
    ],
)
def test_what_is_no_optimizer_is_refused_with_the_recipe(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        world.recipe(tmp_path, {"groups": {"sight": options}})


def test_betas_reach_those_that_have_them(tmp_path):
    chosen = world.recipe(tmp_path, {"groups": {"sight": {"optimizer": "muon", "betas": [0.5, 0.6]}}}).groups["sight"]
    named = [("m", torch.nn.Parameter(torch.ones(2, 3))), ("b", torch.nn.Parameter(torch.ones(3)))]
    one = GroupOptimizer("g", named, 0.1, betas=chosen.betas, entry=Muon(chosen.optimizer))
    assert [group.get("betas") for group in one.optimizer.param_groups] == [None, (0.5, 0.6)]


def test_muon_wants_a_matrix_and_leaves_tables_to_adamw():
    vector = [("llm.norm.weight", torch.nn.Parameter(torch.ones(3)))]
    with pytest.raises(ConfigError, match=r"without a matrix.*llm\.norm\.weight"):
        GroupOptimizer("g", vector, 0.1, entry=Muon(MuonConfig(name="muon")))
    named = [(name, torch.nn.Parameter(torch.ones(2, 2))) for name in ("llm.embed_tokens.weight", "llm.q.weight")]
    one = GroupOptimizer("g", named, 0.1, entry=Muon(MuonConfig(name="muon")))
    for _, parameter in named:
        parameter.grad = torch.ones(2, 2)
    one.step(one.norm(), 1.0)
    assert set(one.state()) == {
        "llm.embed_tokens.weight/exp_avg",
        "llm.embed_tokens.weight/exp_avg_sq",
        "llm.embed_tokens.weight/step",
        "llm.q.weight/momentum_buffer",
    }


def test_an_optimizer_whose_package_is_absent_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    recipe = world.recipe(tmp_path, {"groups": {"sight": {"optimizer": "adamw_8bit"}}})
    with pytest.raises(ModelError, match=r"adamw_8bit.*bitsandbytes.*\n.*\n.*pip install 'mmtune\[8bit\]'"):
        train(recipe, tmp_path / "run", progress="off")


def test_eight_bits_are_counted():
    parameter = torch.empty(1000, 10, device="meta")
    held = AdamW8bit(AdamW8bitConfig(name="adamw_8bit")).state_of("w", parameter)
    assert sum(tensor.nbytes for tensor in held.values()) == 2 * (10_000 + 4 * 256 + 4 * 40)


def test_code_from_outside_waits_for_a_word(tmp_path):
    recipe = world.recipe(tmp_path, {"groups": {"sight": {"optimizer": "mine.lion:Lion"}}})
    with pytest.raises(ConfigError, match="mine.lion:Lion: code outside mmtune"):
        train(recipe, tmp_path / "run", progress="off")
    assert not (tmp_path / "run").exists() and registry.needs_word(recipe.model_dump(mode="json"))


def test_one_from_outside_trains_and_resumes_and_is_not_asked_for_afterwards(tmp_path, monkeypatch):
    (tmp_path / "outside_lion.py").write_text(dedent(ADDITIONS["optimizers"].text))
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "outside_lion:Lion"
    changes = {"groups": {"sight": {"optimizer": name}}, "schedule": {"steps": 4}}
    recipe = world.recipe(tmp_path, changes, save_every=2)
    monkeypatch.setattr(registry, "_allowed", set())
    train(recipe, tmp_path / "run", progress="off", allow_code=[name])
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000004")
    assert train(recipe, tmp_path / "run", resume=True, progress="off", allow_code=[name]).finished
    assert any(full.endswith("/mean") for full in saved(tmp_path / "run"))
    monkeypatch.setattr(registry, "_allowed", set())
    assert store.load_run(tmp_path / "run"), "who only loads the run needs no optimizer"


def test_plan_and_show_tell_of_the_optimizer():
    devices = plan.Devices(1, 80.0, 989.0, 0.4, 400.0)
    sizes = {}
    for optimizer in ("adamw", "muon"):
        lines = plan.lines("llava_1_5_7b_lora", [f"groups.lora.optimizer={optimizer}"], devices)
        sizes[optimizer] = float(next(line for line in lines if line.startswith("replicate")).split()[4])
    assert (sizes["adamw"], sizes["muon"]) == (2.7, 1.4), "of 340 million numbers, nearly all of them in matrices"
    group = config.load(Recipe, "pocket", ["groups.connector.optimizer={name: sgd, momentum: 0.5}"]).groups["connector"]
    assert _groups._options(group) == "momentum 0.5, nesterov False, "
