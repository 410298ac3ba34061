"""Structures of published models without their files: enough to look at, never to talk with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmtune.encoders import _known as towers
from mmtune.errors import CheckpointError
from mmtune.llm import _known
from mmtune.llm.hf import HF, Config
from tests.llm.tiny import folder

SIZES = {"lmsys/vicuna-7b-v1.5": 6_738_415_616, "llava-hf/llava-v1.6-vicuna-13b-hf": 13_016_519_680}


@pytest.mark.parametrize("repo", sorted(SIZES))
def test_the_structure_of_a_published_model(repo: str) -> None:
    with torch.device("meta"):
        llm = HF(Config(repo=repo))
    assert sum(parameter.numel() for parameter in llm.parameters()) == SIZES[repo]
    assert llm.tokenizer.vocabulary == llm.model.config.vocab_size


def test_without_files_there_is_no_text_and_there_are_no_weights() -> None:
    with torch.device("meta"):
        llm = HF(Config(repo="lmsys/vicuna-7b-v1.5"))
    with pytest.raises(CheckpointError, match=r"tokenizer of lmsys/vicuna-7b-v1\.5 was not fetched"):
        llm.tokenizer.encode("hello")
    with pytest.raises(CheckpointError, match=r"lmsys/vicuna-7b-v1\.5"):
        llm.load_weights()


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    settings = {"folder": str(tmp_path / "llm"), "like": "lmsys/vicuna-7b-v1.5"}
    with torch.device("meta"):
        assert HF(Config(**settings)).width == 4096
    with torch.device("meta"), pytest.raises(CheckpointError, match="without config"):
        HF(Config(folder=settings["folder"]))
    with torch.device("meta"), pytest.raises(CheckpointError, match="without config"):
        HF(Config(**{**settings, "like": "nobody/knows-it"}))
    # once it is there, its own files count
    folder(tmp_path / "llm")
    llm = HF(Config(**settings))
    llm.load_weights()
    assert llm.width == 32 and llm.tokenizer.encode("hello")


def test_a_folder_that_came_later_and_is_another_model(tmp_path: Path) -> None:
    settings = Config(folder=str(tmp_path / "llm"), like="lmsys/vicuna-7b-v1.5")
    with torch.device("meta"):
        llm = HF(settings)
    folder(tmp_path / "llm")
    with pytest.raises(CheckpointError, match="32, 2, 4"):
        llm.load_weights()


def test_every_known_structure_is_whole() -> None:
    for repo in _known.names():
        hf_config = _known.hf_config_of(repo)
        assert hf_config["hidden_size"] % hf_config["num_attention_heads"] == 0, repo
    assert _known.hf_config_of("nobody/knows-it") is None and towers.trees("nobody/knows-it") is None


def test_a_published_tower() -> None:
    from mmtune.encoders.hf_vision import Config as Tower
    from mmtune.encoders.hf_vision import HfVision

    with torch.device("meta"):
        tower = HfVision(Tower(weights="openai/clip-vit-large-patch14-336"))
    assert (tower.width, tower.tokens_per_frame, tower.grid) == (1024, 576, (24, 24))
    assert sum(parameter.numel() for parameter in tower.parameters()) == 303_507_456
    assert tower.pixels.size == (336, 336) and tower.pixels.resize == "crop"
    with pytest.raises(CheckpointError, match="openai/clip"):
        tower.load_weights()
