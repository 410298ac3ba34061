"""A tower of open_clip leaves as the same tower of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmtune import config, registry
from mmtune.checkpoint import convert
from mmtune.checkpoint.foreign import _open_clip
from mmtune.errors import CheckpointError
from mmtune.recipe import Recipe
from mmtune.training.loop import train
from tests.checkpoint.foreign import test_llava_hf as llava
from tests.encoders import tiny
from tests.llm import tiny as llms
from tests.training.world import shards


def encoder(folder: Path, **options):
    chosen = registry.find("encoders", "clip")
    made = chosen(chosen.Config(weights=str(folder), **options))
    made.load_weights()
    return made.eval()


@pytest.mark.parametrize("options", [{}, {"layer": -1}, {"tokens": "all"}, {"tokens": "all", "norm": True}])
def test_the_same_tokens(options: dict, tmp_path: Path) -> None:
    mine = encoder(tiny.clip_folder(tmp_path / "tower"), **options)
    theirs = _open_clip.as_transformers(mine)
    x, frames = torch.randn(2, 3, 3, 24, 24), torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        assert torch.allclose(mine(x, frames).tokens, theirs(x, frames).tokens, atol=1e-5)
    assert theirs.pixels == mine.pixels and theirs.structure["model_type"] == "clip_vision_model"


def test_towers_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="project: true"):
        _open_clip.as_transformers(encoder(tiny.clip_folder(tmp_path / "a"), norm=True, project=True))
    pooled = tiny.clip_folder(tmp_path / "b", {"no_ln_pre": True})
    with pytest.raises(CheckpointError, match="no plain ViT"):
        _open_clip.as_transformers(encoder(pooled))


def test_a_run_with_it_is_a_llava(tmp_path: Path) -> None:
    """Trained for a step, out, opened by transformers: the same logits and the same answer."""
    llm = llms.folder(tmp_path / "llm", tokenizer=llms.llama_bpe(plain=()))
    (llm / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    tower = {"name": "clip", "weights": str(tiny.clip_folder(tmp_path / "tower"))}
    tree = {
        "model": {
            "branches": {"sight": {"encoder": tower, "connector": {"name": "mlp"}, "kinds": ["image"]}},
            "llm": {"name": "hf", "folder": str(llm)},
            "fusion": {"name": "tokens"},
        },
        "streams": {"own": {"data": [str(shards(tmp_path / "shards"))], "format": "llava", "prompt": "vicuna"}},
        "groups": {"connector": {"match": ["branches.*.connector.*"], "lr": 0.01}},
        "schedule": {"steps": 1},
        "run": {"workers": 0},
    }
    run = tmp_path / "run"
    train(config.validate(Recipe, tree), out=run, progress="off")
    out = convert.export_checkpoint(run, "llava_hf", tmp_path / "out")
    theirs = llava.reload(out)
    assert json.loads((out / "config.json").read_text())["vision_config"]["hidden_size"] == tiny.VISION["width"]
    ref = llava.picture(tmp_path)
    back = convert.import_checkpoint("llava_hf", [str(out)], tmp_path / "back")
    example, _, logits, answer = llava.ours(run, ref)
    _, pixels, again, same = llava.ours(back, ref)
    assert torch.allclose(logits, again, atol=1e-4) and answer == same
    image = json.loads((out / "config.json").read_text())["image_token_index"]
    assert torch.allclose(llava.theirs(theirs, example, pixels, image, ref)[0], logits, atol=1e-4)
