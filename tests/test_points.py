"""Point clouds through the whole house: shards of .xyz files, a canvas that learns before a frozen tower, the run read
back, and a question about a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtune import config, train
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.data import index
from mmtune.recipe import Recipe
from mmtune.serve.loaded import chat
from tests.encoders.tiny import p2p
from tests.llm.tiny import folder as llm_folder
from tests.training.world import said, write_tar


def xyz(flat: bool, seed: int) -> bytes:
    """A pole, or a plate."""
    points = np.random.default_rng(seed).uniform(-1, 1, (80, 3)) * ((1, 0.05, 1) if flat else (0.05, 1, 0.05))
    return "\n".join(" ".join(f"{v:.5f}" for v in point) for point in points).encode()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    members = {}
    for number in range(16):
        name = ("pole", "plate")[number % 2]
        talk = {"conversations": said("<points>\nwhat is it?", name), "points": f"{number:03d}.xyz"}
        members |= {f"{number:03d}.json": json.dumps(talk).encode(), f"{number:03d}.xyz": xyz(name == "plate", number)}
    write_tar(folder / "part-0000.tar", members)
    index.index_shards([str(folder / "part-*.tar")])
    template = folder / "plain.yaml"
    template.write_text(
        'begin: "<|bos|>"\nuser: {before: "<|user|>"}\nassistant: {before: "<|assistant|>", after: "<|end|>"}\n'
        'media: {points: ["<|media|>", "<|/media|>"]}\nstop: ["<|end|>"]\n'
    )
    encoder = {"name": "p2p_points", **p2p(folder / "tower"), "train_views": 1}
    tree = {
        "model": {
            "branches": {"points": {"encoder": encoder, "connector": {"name": "mlp"}}},
            "llm": {"name": "hf", "folder": str(llm_folder(folder / "llm"))},
            "fusion": {"name": "tokens"},
        },
        "streams": {"shapes": {"data": [str(folder / "part-*.tar")], "format": "llava", "prompt": str(template)}},
        "groups": {
            "drawing": {"match": ["branches.points.encoder.draw.*"], "lr": 3e-3},
            "norms": {"match": ["branches.points.encoder.image.tower.*norm*"], "lr": 3e-3},
            "connector": {"match": ["branches.points.connector.*"], "lr": 3e-3},
        },
        "schedule": {"steps": 6},
        "run": {"batch_tokens": 128, "length": 64, "device": "cpu", "workers": 0, "seed": 3},
        "chat": {"prompt": str(template), "max_tokens": 4},
    }
    return config.validate(Recipe, tree)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "points"
    assert train(recipe, out, progress="off").code == 0
    return out


def test_only_the_canvas_wakes(recipe):
    model = models.build(recipe.model)
    store.groups_of(model, recipe)
    encoder = model.train().branches["points"].encoder
    assert all(module.training for module in encoder.draw.modules())
    assert not any(module.training for module in encoder.image.modules())
    model.eval()
    assert not any(module.training for module in encoder.modules())


def test_a_canvas_that_is_frozen_sleeps(recipe):
    groups = {"connector": recipe.groups["connector"].model_dump()}
    model = models.build(recipe.model)
    store.groups_of(model, config.validate(Recipe, {**recipe.model_dump(mode="json"), "groups": groups}))
    assert not any(module.training for module in model.train().branches["points"].encoder.modules())


def test_what_is_meant_to_learn_moves_and_the_rest_stays(recipe, run):
    before = models.build(recipe.model).state_dict()
    after = store.load_run(run)[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    head = "branches.points.encoder."
    assert {name for name in moved if name.startswith("llm.")} == set()
    tower = {name for name in moved if name.startswith(f"{head}image.")}
    assert tower and all("norm" in name for name in tower)
    canvas = {name for name in before if name.startswith(f"{head}draw.")}
    assert canvas <= moved
    assert int(after[f"{head}draw.img_block.0.bn1.num_batches_tracked"]) > 0


def test_a_question_about_a_file(run, tmp_path):
    path = tmp_path / "scan.xyz"
    path.write_bytes(xyz(True, 99))
    talk = chat(run)
    talk.attach(path)
    answer = talk.ask("what is it?")
    answer.whole()
    assert answer.record()["tokens"]["media"] == 9  # one view, 3 x 3 tokens
