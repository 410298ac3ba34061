"""What runs and recipes of before hold under old names: read with a note, and written in today's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

import mmtune
from mmtune import config, prompt, renamed
from mmtune.checkpoint import seal, store
from mmtune.errors import ConfigError
from mmtune.recipe import Recipe
from mmtune.training import loop
from tests.training import world

OLD = {new: old for old, new in [
    ("turns", "interleave"), ("kind", "lr_schedule"), ("floor", "min_lr_ratio"), ("clip", "max_grad_norm"),
    ("checkpointing", "activation_checkpointing"), ("start", "init_from"), ("blank", "default_image_branch"),
    ("places", "token_positions"),
]}  # fmt: skip
"""Written out once more: the table under test is not what makes the old files."""


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(renamed, "_said", set())


def aged(tree):
    """A tree as the version before wrote it."""
    if isinstance(tree, dict):
        return {OLD.get(key, key): aged(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [aged(value) for value in tree]
    return tree.replace("llm.prefix.", "llm.soft.") if isinstance(tree, str) else tree


def age(run: Path) -> None:
    """Make a run folder one of the version before: recipe, names of tensors, facts of its states; sealed as it was."""
    recipe = run / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(aged(yaml.safe_load(recipe.read_text())), sort_keys=False))
    for folder in [run / "weights", *(run / "state").glob("step-*")]:

        def fill(draft: Path, folder: Path = folder) -> None:
            for file in folder.iterdir():
                if file.suffix == ".safetensors":
                    tensors = load_file(file)
                    save_file({aged(name): tensor for name, tensor in tensors.items()}, draft / file.name)
                elif file.name == "run.json":
                    info = json.loads(file.read_text())
                    assert not {"bad", "pieces", "judged"} & info.keys(), "written with today's keys"
                    info["bad"], info["pieces"] = info.pop("nonfinite_steps"), info.pop("micro_step_parts")
                    info["judged"] = info.pop("validation")
                    info["facts"]["recipe"] = aged(info["facts"]["recipe"])
                    for template in info["facts"]["prompts"].values():
                        template["times"] = template.pop("timestamps")
                    (draft / file.name).write_text(json.dumps(info))

        seal.write(folder, fill)


def test_every_old_field_of_a_recipe_is_read_and_noted(tmp_path, fresh, capsys):
    full = config.load(Recipe, "pocket_joint", ["run.init_from=runs/x", "groups.speech.max_grad_norm=0.5"])
    tree = full.model_dump(mode="json")
    assert config.validate(Recipe, aged(tree)) == full
    file = tmp_path / "old.yaml"
    file.write_text(config.dump(aged(tree)))
    capsys.readouterr()
    assert config.load(Recipe, file) == full
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and str(file) in said and "schedule.turns -> interleave" in said
    assert config.load(Recipe, file) == full and "note:" not in capsys.readouterr().err, "once"
    written = config.dump(full)
    assert "interleave: alternate" in written and yaml.safe_load(written)["run"].keys() >= {
        "init_from",
        "max_grad_norm",
    }
    assert not {"turns", "kind", "floor"} & yaml.safe_load(written)["schedule"].keys()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schedule.kind=linear", "schedule.lr_schedule=linear"),
        ("schedule.floor=0.1", "schedule.min_lr_ratio=0.1"),
        ("schedule={steps: 9, turns: alternate}", "schedule={steps: 9, interleave: alternate}"),
        ("groups.speech.clip=0.5", "groups.speech.max_grad_norm=0.5"),
        ("run.checkpointing=true", "run.activation_checkpointing=true"),
        ("run.clip=0", "run.max_grad_norm=0"),
        ("run.start=runs/a", "run.init_from=runs/a"),
    ],
)
def test_old_names_work_on_the_command_line(old, new, fresh, capsys):
    assert config.load(Recipe, "pocket_joint", [old]) == config.load(Recipe, "pocket_joint", [new])
    assert ("is called" in (said := capsys.readouterr().err)) == ("{" not in old) and ("note" in said)


def test_a_field_under_both_names_is_refused(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text("base: pocket\nrun: {clip: 1, max_grad_norm: 2}\n")
    with pytest.raises(ConfigError, match=r"run\.clip and run\.max_grad_norm"):
        config.load(Recipe, file)


def test_what_is_no_mapping_is_left_to_the_checks():
    for tree in (None, 3, [], {"schedule": 3, "groups": {"a": None}, "run": []}):
        assert renamed.fields(tree) == tree


def test_a_template_says_its_times_under_the_old_name(tmp_path, fresh, capsys):
    text = (store.paths.PACKAGE.parent / "configs/prompts/video_llama.yaml").read_text()
    assert "timestamps:" in text
    file = tmp_path / "old.yaml"
    file.write_text(text.replace("timestamps:", "times:"))
    assert prompt.load(str(file)) == prompt.load("video_llama") and "times -> timestamps" in capsys.readouterr().err


def test_a_run_of_before_loads_goes_on_and_begins_another(tmp_path, fresh, capsys):
    prefix = {"name": "hf_peft", "method": "prompt_tuning", "num_virtual_tokens": 3}
    changes = {
        "model": {"tuners": [prefix]},
        "groups": {"speech": {"match": ["llm.prefix.*", "llm.*norm*"], "lr_schedule": "linear", "max_grad_norm": 0.5}},
        "schedule": {"steps": 4, "warmup": 1},
    }
    recipe = world.recipe(tmp_path, changes, save_every=2)
    whole, run = tmp_path / "whole", tmp_path / "run"
    loop.train(recipe, whole, progress="off")
    loop.train(recipe, run, progress="off")
    shutil.rmtree(run / "state" / "step-00000004")
    want = {file.name: load_file(file) for file in (whole / "weights").glob("*.safetensors")}
    assert any(name.startswith("llm.prefix.") for name in want["speech.safetensors"])
    age(run)
    assert "llm.soft." in (run / "recipe.yaml").read_text()
    model, _, _ = store.load_run(run)
    state = model.state_dict()
    for tensors in want.values():
        for name, tensor in tensors.items():
            assert state[name].float().equal(tensor), name
    loaded = mmtune.load(run)
    assert loaded.recipe.groups["speech"].lr_schedule == "linear"
    capsys.readouterr()
    result = loop.train(store.read_recipe(run), run, resume=True, progress="lines")
    said = capsys.readouterr()
    assert result.finished and result.step == 4 and "changed since" not in said.out + said.err
    for file in (run / "weights").glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert tensor.equal(want[file.name][name]), name
    age(whole)
    second = config.override(recipe.model_dump(mode="json"), f"run.start={whole}")
    taken = loop.train(config.validate(Recipe, second), tmp_path / "second", dry_run=True, progress="lines")
    assert taken.loss is not None and "tensors from" in capsys.readouterr().out
