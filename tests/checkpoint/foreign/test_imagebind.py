"""ImageBind's importer: the published names and shapes at full size, both towers, and what is never a default."""

from __future__ import annotations

import pytest
import torch

from mmtune import config, registry
from mmtune.checkpoint import convert
from mmtune.checkpoint.foreign._imagebind import LICENCE, pick, rules
from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.foreign.imagebind import Config, Imagebind
from mmtune.checkpoint.keymap import KeyMap
from mmtune.errors import CheckpointError
from tests.checkpoint.foreign.makers import imagebind as maker


def count(tensors: dict, *starts: str) -> int:
    return sum(t.numel() for name, t in tensors.items() if name.startswith(starts))


@pytest.mark.parametrize(
    ("modality", "name", "published"),
    [
        ("audio", "imagebind_audio", lambda: maker.sound(768, 12, 16, 228, 1024)),
        ("vision", "imagebind_vision", lambda: maker.sight(1280, 32, 14, 256, 1024)),
    ],
)
def test_full_size_names_and_shapes(modality, name, published) -> None:
    """On the meta device, out and in: exactly the published names and shapes, and the defaults are the sizes."""
    found = registry.find("encoders", name)
    with torch.device("meta"):
        ours, theirs = found(found.Config()).state_dict(), published()
    out = KeyMap(rules(modality, "encoder:")).out({f"encoder:{n}": t for n, t in ours.items()})
    assert {n: list(t.shape) for n, t in out.items()} == {n: list(t.shape) for n, t in theirs.items()}
    got = Imagebind(Config(modality=modality)).read({"imagebind": Source.memory("imagebind", theirs)})
    made = config.validate(found.Config, got.recipe["encoder"])
    chosen = {"centre": "running"} if modality == "audio" else {}
    assert made == found.Config(**chosen)
    assert got.part("encoder").keys() == ours.keys()


def test_full_size_counts() -> None:
    with torch.device("meta"):
        theirs = maker.sound(768, 12, 16, 228, 1024)
    assert round(count(theirs, "modality_trunks.") / 1e6, 2) == 85.07
    assert round(count(theirs, "modality_preprocessors.") / 1e6, 2) == 0.37
    assert round(count(theirs, "modality_heads.") / 1e6, 2) == 0.79


def test_the_image_tower_of_the_same_file(tmp_path) -> None:
    made = maker.make(tmp_path)
    folder = convert.import_checkpoint("imagebind", made.words, tmp_path / "eye", ["modality=vision", "heads=2"])
    entry = config.parse((folder / "encoder.yaml").read_text(), "encoder.yaml")["encoder"]
    assert (entry["name"], entry["tower_width"], entry["depth"], entry.get("size")) == ("imagebind_vision", 8, 1, 4)
    found = registry.find("encoders", "imagebind_vision")
    eye = found(config.validate(found.Config, {**entry, "weights": str(folder)}))
    eye.load_weights()
    theirs = torch.load(made.trained, weights_only=True)
    assert torch.equal(eye.tower.stem.weight, theirs["modality_preprocessors.vision.rgbt_stem.proj.1.weight"])
    assert torch.equal(eye.tower.blocks[0].qkv.bias, theirs["modality_trunks.vision.blocks.0.attn.in_proj_bias"])


@pytest.mark.parametrize("spacing", ["full", "short"])
def test_what_the_weights_depend_on_is_said_by_name(tmp_path, spacing) -> None:
    made = maker.make(tmp_path)
    got = Imagebind(Config(heads=2, mels=16, length=20, stride=3, spacing=spacing, frames=5)).read(
        {"imagebind": Source("imagebind", made.trained, tmp_path / "scratch")}
    )
    section = got.recipe["encoder"]
    assert (section["spacing"], section["centre"], section["frames"]) == (spacing, "running", 5)
    assert got.facts["licence"] == LICENCE
    assert "in place" in got.facts["centre"]


def test_the_other_senses_are_left_out_and_strangers_are_not() -> None:
    tensors = {"modality_trunks.audio.blocks.0.norm_1.weight": 1, "modality_heads.imu.0.weight": 2, "stranger": 3}
    assert sorted(pick(tensors, "audio")) == ["modality_trunks.audio.blocks.0.norm_1.weight", "stranger"]
    with pytest.raises(CheckpointError, match="modality_trunks.vision"):
        pick(tensors, "vision")


def test_a_run_without_a_tower_of_imagebind_is_refused() -> None:
    from types import SimpleNamespace

    from mmtune.checkpoint.foreign.base import Opened

    other = SimpleNamespace(encoder=SimpleNamespace(name="clip"))
    recipe = SimpleNamespace(model=SimpleNamespace(branches={"sight": other}))
    with pytest.raises(CheckpointError, match="imagebind_audio"):
        Imagebind(Config()).write(Opened(SimpleNamespace(), recipe))
