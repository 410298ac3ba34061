"""A part of a package without the rest of it, and the rest when it is wanted."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from mmtune.encoders._thin import thin


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package whose `__init__` imports all of it and notes that it ran; returns what ran so far."""
    package = tmp_path / "thinhouse"
    (package / "inner").mkdir(parents=True)
    note = "import builtins; builtins.thinhouse_ran.append(__name__)\n"
    (package / "__init__.py").write_text(f"{note}from .big import BIG\nfrom .small import SMALL\nfrom . import inner\n")
    (package / "big.py").write_text(f"{note}from thinhouse import small\nBIG = 2\n")
    (package / "small.py").write_text(f"{note}class SMALL: pass\n")
    (package / "inner" / "__init__.py").write_text(f"{note}from .leaf import LEAF\n__all__ = ['LEAF']\n")
    (package / "inner" / "leaf.py").write_text(f"{note}from ..small import SMALL\nLEAF = SMALL\n")
    ran: list[str] = []
    monkeypatch.setattr("builtins.thinhouse_ran", ran, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ran
    for name in [name for name in sys.modules if name.split(".")[0] == "thinhouse"]:
        del sys.modules[name]


def test_only_what_is_asked_for_runs(house):
    with thin("thinhouse", "thinhouse.inner"):
        from thinhouse.inner.leaf import LEAF
    assert house == ["thinhouse.inner.leaf", "thinhouse.small"]
    assert LEAF.__name__ == "SMALL"


def test_the_package_itself_comes_whole_and_with_the_same_parts(house):
    with thin("thinhouse", "thinhouse.inner"):
        from thinhouse.inner.leaf import LEAF
    assert "thinhouse" not in sys.modules
    import thinhouse

    assert thinhouse.BIG == 2 and thinhouse.SMALL is LEAF and thinhouse.small.SMALL is LEAF
    assert thinhouse.inner.leaf.LEAF is LEAF and thinhouse.inner.LEAF is LEAF
    assert sorted(house) == sorted(set(house)), "nothing ran twice"
    assert type(thinhouse.__loader__) is type(thinhouse.__spec__.loader) is type(thinhouse.small.__loader__)


def test_a_further_submodule_brings_the_package_first(house):
    with thin("thinhouse", "thinhouse.inner"):
        from thinhouse.small import SMALL
    big = importlib.import_module("thinhouse.big")
    assert house.index("thinhouse") < house.index("thinhouse.big") and house.count("thinhouse.big") == 1
    assert sys.modules["thinhouse"].big is big and big.small.SMALL is SMALL


def test_what_is_imported_already_or_missing_stays_as_it_is(house):
    import thinhouse

    with thin("thinhouse", "thinhouse_that_is_not_there"):
        assert sys.modules["thinhouse"] is thinhouse and thinhouse.BIG == 2
    assert sys.modules["thinhouse"] is thinhouse and "thinhouse_that_is_not_there" not in sys.modules


def test_a_package_that_fails_fails_each_time(house, tmp_path: Path):
    with open(tmp_path / "thinhouse" / "__init__.py", "a") as file:
        file.write("raise OSError('no library')\n")
    with thin("thinhouse"):
        from thinhouse.small import SMALL  # noqa: F401
    for _ in range(2):
        with pytest.raises(OSError, match="no library"):
            importlib.import_module("thinhouse")


def test_a_part_that_fails_leaves_no_stand_in(house):
    with pytest.raises(ModuleNotFoundError, match="thinhouse.huge"), thin("thinhouse"):
        importlib.import_module("thinhouse.huge")
    assert importlib.import_module("thinhouse").BIG == 2


def test_the_image_tower_comes_without_the_rest_of_its_library():
    """In a process of its own: text towers, timm and torchvision's models are not there, and come when asked for."""
    script = """
import sys
from mmtune.encoders.clip import Clip, Config
tower = Clip(Config(weights="mmtune:pocket/image")).visual
for name in ("open_clip.model", "open_clip.factory", "timm", "transformers", "torchvision.models"):
    assert name not in sys.modules, name
from open_clip.model import CLIP
import open_clip, torchvision
assert open_clip.CLIP is CLIP and "timm" in sys.modules and open_clip.get_model_config("ViT-B-32")["embed_dim"] == 512
assert type(tower) is open_clip.transformer.VisionTransformer
import torch
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
assert torchvision.models.resnet18 and torchvision.ops.misc.FrozenBatchNorm2d
"""
    subprocess.run([sys.executable, "-c", script], check=True)
