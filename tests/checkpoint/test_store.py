"""A run folder there and back, and every way in which it must not load."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune import model as models
from mmtune.checkpoint import seal, store
from mmtune.errors import CheckpointError
from tests.training import world


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, its model with weights that no fresh build has, a run folder)"""
    folder = tmp_path_factory.mktemp("world")
    recipe = world.recipe(folder)
    model = models.build(recipe.model)
    groups = store.groups_of(model, recipe)
    with torch.no_grad():
        for named in groups.values():
            for number, (_, parameter) in enumerate(named):
                parameter.add_(0.5 + number)
    store.save_run(folder / "run", model, recipe, {"steps": 3})
    return recipe, model, folder / "run"


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made[2], tmp_path / "run")


def test_files(made):
    _, model, run = made
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    weights = {"weights/sight.safetensors", "weights/speech.safetensors", "weights/manifest.json"}
    assert names == {"recipe.yaml", "base.yaml", "card.md", "prompts/plain.yaml", *weights}
    stored = {**load_file(run / "weights/sight.safetensors"), **load_file(run / "weights/speech.safetensors")}
    assert set(stored) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "steps: 3" in (run / "card.md").read_text()


def test_there_and_back(made, run):
    recipe, model, _ = made
    again, processor, read = store.load_run(run)
    assert read == recipe
    here, there = model.state_dict(), again.state_dict()
    assert set(here) == set(there) and all(torch.equal(here[name], there[name]) for name in here)
    assert not any(parameter.requires_grad for parameter in again.parameters()) and not again.training
    assert processor.stops


def test_the_template_travels(run, monkeypatch):
    """A template that was given by path is found in the run, also where that path is gone."""
    from mmtune import prompt

    asked = []
    monkeypatch.setattr(prompt, "load", lambda name, real=prompt.load: asked.append(name) or real(name))
    store.load_run(run)
    assert asked == [str(run / "prompts" / "plain.yaml")]


def change(run, group, edit):
    path = run / "weights" / f"{group}.safetensors"
    tensors = load_file(path)
    edit(tensors)
    shutil.copytree(run / "weights", run / "edited")
    save_file(tensors, run / "edited" / path.name)
    (run / "edited" / seal.MANIFEST).unlink()
    files = list((run / "edited").iterdir())
    seal.write(run / "weights", lambda draft: [shutil.copy(file, draft) for file in files])
    shutil.rmtree(run / "edited")


def test_all_names_that_do_not_fit_in_one_error(run):
    def edit(tensors):
        first, second = sorted(tensors)[:2]
        tensors["stranger"] = torch.zeros(1)
        tensors[second] = torch.zeros(7)
        del tensors[first]

    change(run, "sight", edit)
    with pytest.raises(CheckpointError) as caught:
        store.load_run(run)
    text = str(caught.value)
    for words in ("missing: branches.sight.connector", "unexpected: stranger", "misshapen: branches"):
        assert words in text


def test_another_type_is_no_silent_cast(run):
    change(run, "sight", lambda tensors: tensors.update({k: t.half() for k, t in tensors.items()}))
    with pytest.raises(CheckpointError, match="float16"):
        store.load_run(run)


@pytest.mark.parametrize("name", ["sight.safetensors", "speech.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_refused(run, name, damage):
    path = run / "weights" / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(CheckpointError, match="damaged"):
        store.load_run(run)


def test_no_weights_yet(run):
    shutil.rmtree(run / "weights")
    with pytest.raises(CheckpointError, match="--resume"):
        store.load_run(run)


def test_killed_between_the_two_renames(made, run):
    (run / "weights").rename(run / ".weights.old")
    model, _, _ = store.load_run(run)
    name = "llm.model.model.norm.weight"
    assert torch.equal(model.state_dict()[name], made[1].state_dict()[name])


def test_another_base_is_refused(made, run):
    recipe, _, _ = made
    tower = recipe.model.branches["sight"].encoder.weights
    copy = shutil.copytree(tower, run / "tower")
    file = copy / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(tensors, file)
    text = (run / "recipe.yaml").read_text().replace(tower, str(copy))
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="branches.sight.encoder: trained on"):
        store.load_run(run)


def test_not_a_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no recipe\.yaml"):
        store.load_run(tmp_path)
