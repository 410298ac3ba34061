"""Every YAML file that is shipped loads, and every recipe builds: on the meta device, with toy parts for what would
have to be downloaded."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mmtune import config, registry
from mmtune.errors import MmtuneError

ROOT = Path(__file__).resolve().parent.parent
BUILTINS = {"recipes": ROOT / "configs/recipes", "prompts": ROOT / "configs/prompts", "cards": ROOT / "data/cards"}
LAUNCH = ROOT / "configs/accelerate"
"""Not ours to read: for `accelerate launch`, see tests/training/test_launch.py."""
FILES = sorted(p for top in ("configs", "data") for p in (ROOT / top).rglob("*.yaml") if p.parent != LAUNCH)
RECIPES = [path for path in FILES if path.parent == BUILTINS["recipes"]]


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_file_is_counted() -> None:
    """Walks the folders another way, so a spelling or a subfolder that the glob does not see is noticed."""
    seen = 0
    for top in ("configs", "data"):
        for folder, _, names in os.walk(ROOT / top):
            for name in names if Path(folder) != LAUNCH else ():
                if name.lower().endswith((".yaml", ".yml", ".yaml.in", ".json")):
                    seen += 1
                    assert Path(folder) in BUILTINS.values(), (
                        f"{folder}/{name} lies in no folder that ships, so nobody loads it"
                    )
                    assert name.endswith(".yaml"), name
    assert seen == len(FILES)
    assert len(FILES) == sum(len(registry.shipped(builtin_folder)) for builtin_folder in BUILTINS)
    assert RECIPES and len(FILES) > len(RECIPES)


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_it_loads(path: Path) -> None:
    from mmtune import prompt
    from mmtune.recipe import Card, Recipe

    builtin_folder = next(name for name, folder in BUILTINS.items() if folder == path.parent)
    if builtin_folder == "prompts":
        assert prompt.load(path.stem).stop
        return
    loaded = config.load({"recipes": Recipe, "cards": Card}[builtin_folder], path.stem, builtin=builtin_folder)  # type: ignore[arg-type]
    again = config.validate(type(loaded), config.parse(config.dump(loaded), "the dump"))
    assert again == loaded, "a file that is resolved and read again means the same"


@pytest.mark.parametrize("path", RECIPES, ids=_id)
def test_it_builds(path: Path, tmp_path: Path) -> None:
    from mmtune import model as models
    from mmtune import params
    from mmtune.recipe import Recipe

    tree = config.read(path)
    tree["model"]["llm"] = _llm(tree["model"]["llm"], tmp_path)
    for branch in tree["model"].get("branches", {}).values():
        branch["encoder"] = _encoder(branch["encoder"], tmp_path)
    recipe = config.validate(Recipe, tree)
    model = models.build(recipe.model, weights=False, device="meta")
    parts = params.partition(model, recipe.groups, recipe.model.freeze)
    assert set(parts) == set(recipe.groups)
    assert all(parts.values())
    assert params.table(model, parts, recipe.groups).count("\n") >= len(parts)
    for name, branch in model.branches.items():
        assert branch.connector.tokens_out(1) >= 1, name
        assert branch.connector.tokens_out(branch.encoder.max_frames) >= 1, name


def _llm(written: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe's own where its files are here, else a random tiny one."""
    if _buildable("llm", written):
        return written
    from tests.llm.tiny import folder as tiny

    return {"name": "hf", "folder": str(tiny(folder / "llm"))}


def _encoder(written: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe's own where it builds here; else the same encoder with the smallest weights made on the spot."""
    if _buildable("encoders", written):
        return written
    from tests.encoders.tiny import TINY

    own = {key: value for key, value in written.items() if key in ("name", "frames", "segments", "tokens")}
    small = folder / written["name"]
    small.mkdir(exist_ok=True)
    return {**TINY[written["name"]](small), **own}


def _buildable(room: str, written: dict[str, Any]) -> bool:
    cls = registry.find(room, written["name"])
    cls.Config.model_validate(written)  # a mistake in the file is an error, not a reason to replace it
    return _builds(room, json.dumps(written, sort_keys=True))


@cache
def _builds(room: str, written: str) -> bool:
    """Many recipes have the same encoder or language model."""
    import torch

    cls = registry.find(room, json.loads(written)["name"])
    settings = cls.Config.model_validate(json.loads(written))
    try:
        with torch.device("meta"):
            cls(settings)
    except MmtuneError:
        return False
    return True
