"""Sizes that a recipe, or a config from elsewhere, says: refused by the name of the part before they are paid for."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
import torch

from mmtune import bounds, config
from mmtune import model as models
from mmtune.encoders._image import Pixels
from mmtune.errors import CheckpointError, ConfigError, ModelError
from mmtune.recipe import Recipe

IMAGEBIND = {"name": "imagebind_vision", "tower_width": 32, "depth": 1, "heads": 2, "out": 16}
AUDIO = {"name": "imagebind_audio", "tower_width": 32, "depth": 1, "heads": 2, "out": 16}
BLIP2 = {
    "name": "blip2_eva", "vit_width": 64, "vit_depth": 1, "vit_heads": 2, "vit_hidden": 64, "queries": 4,
    "qformer_width": 32, "qformer_depth": 2, "qformer_heads": 2,
}  # fmt: skip
TIMM = {"name": "timm_vit", "model": "vit_tiny_patch16_224"}


def of_pocket(encoder: dict[str, Any], **more: Any) -> Recipe:
    tree = config.read("pocket", [])
    tree["model"]["branches"]["sight"] |= {"encoder": encoder, "connector": {"name": "linear"}, **more}
    return config.validate(Recipe, tree)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ({**IMAGEBIND, "depth": 10**9}, "branches.sight.encoder of more than"),
        ({**TIMM, "args": {"depth": 10**6}}, "branches.sight.encoder of more than"),
        ({**IMAGEBIND, "tower_width": 10**6}, "branches.sight.encoder: .* GB by its settings"),
        ({**BLIP2, "vit_hidden": 10**9}, "branches.sight.encoder: .* GB by its settings"),
        ({**BLIP2, "queries": 10**12}, "branches.sight.encoder"),
        ({**AUDIO, "out": 2**62}, "branches.sight.encoder: RuntimeError"),
        ({**AUDIO, "mels": 10**7}, "one item of branches.sight.encoder"),
        ({**TIMM, "size": 4096, "frames": 10_000}, "one item of branches.sight.encoder"),
        ({**TIMM, "args": {"patch_size": 1, "embed_dim": 30_000}}, "branches.sight.encoder: .* GB by its settings"),
    ],
)
def test_sizes_of_an_encoder_are_refused_before_they_are_paid_for(
    encoder: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "TENSORS", 1000)  # as in the large, within less time
    section = of_pocket(encoder).model
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    with pytest.raises(ModelError, match=words) as caught:
        models.build(section)
    assert caught.value.expected and caught.value.hint
    assert time.monotonic() - began < 30 and psutil.Process().memory_info().rss - before < 1 << 30


def test_parts_share_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many would fit alone."""
    monkeypatch.setattr(bounds, "memory", lambda: 40_000_000)
    room = bounds.Room()
    layers = [room.build(f"eye{k}", lambda: torch.nn.Linear(1000, 1000)) for k in range(2)]
    assert not any(layer.weight.is_meta for layer in layers)
    with pytest.raises(ModelError, match=r"eye3: 0.0 GB by its settings"):
        room.build("eye3", lambda: torch.nn.Linear(1000, 1000))


def test_what_files_hold_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little memory beside: weights on disk are what somebody has, not what a setting says."""
    monkeypatch.setattr(bounds, "memory", lambda: 4 << 20)
    room = bounds.Room()
    with torch.device("meta"):
        layer = torch.nn.Linear(1024, 1024)
    room.require("llm", layer, 4 * 1024 * 1025)
    with pytest.raises(ModelError, match=r"llm: 0.0 GB by its settings"):
        room.require("llm", layer, 1000)


@pytest.mark.parametrize("change", ["size=1000000", "frames=1000000000", "fps=1e300", "random_crop=[-1, 3]"])
def test_numbers_of_pictures_have_a_range(change: str) -> None:
    with pytest.raises(ConfigError, match=change.partition("=")[0]):
        config.load(Recipe, "pocket", [f"model.branches.sight.encoder.{change}"])


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (10**6, 10**6)},
        {"size": (0, 24)},
        {"size": (24.5, 24)},
        {"size": (True, 24)},
        {"short": None},
        {"short": 10**9},
        {"mean": (0.5, 0.5)},
        {"mean": ("a", 0, 0)},
        {"mean": (float("nan"), 0, 0)},
        {"std": (0.0, 1, 1)},
        {"std": (-1, 1, 1)},
        {"std": 3},
    ],
)
def test_preprocessing_that_no_picture_can_be_made_by(settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="preprocessing of pictures"):
        Pixels(**{"size": (24, 24), "short": 24, **settings})


def test_whole_numbers_are_those_of_a_machine() -> None:
    with pytest.raises(ConfigError, match="depth: a number of more than 64 bits"):
        of_pocket({**IMAGEBIND, "depth": 10**30})
