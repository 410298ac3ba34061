"""Places that mean the same on another machine: inside the package, and in the folder of the file that names them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmtune import config, paths
from mmtune.errors import ConfigError


def test_here_is_the_folder_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    tree = {"model": {"llm": {"folder": "here:parts/llm"}, "list": ["here:parts/a", "plain"]}, "n": 1}
    (folder / "recipe.yaml").write_text(config.dump(tree))
    for place in (folder, tmp_path / "moved"):
        if place != folder:
            shutil.move(folder, place)
        read = config.read(place / "recipe.yaml")
        parts = place.resolve() / "parts"
        assert read == {"model": {"llm": {"folder": str(parts / "llm")}, "list": [str(parts / "a"), "plain"]}, "n": 1}
        assert paths.to_here(read, place) == tree


def test_here_holds_in_a_base_too(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.yaml").write_text("a: here:parts/x\n")
    (tmp_path / "top.yaml").write_text("base: below/base.yaml\nb: here:y\n")
    read = config.read(tmp_path / "top.yaml")
    assert read == {"a": str((tmp_path / "below/parts/x").resolve()), "b": str((tmp_path / "y").resolve())}


@pytest.mark.parametrize("text", ["here:../secret", "here:", "here:/etc/passwd", "here:a/../../b"])
def test_here_does_not_leave_its_folder(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a name inside the folder"):
        paths.from_here({"a": text}, tmp_path)


def test_only_what_lies_in_parts_is_called_here(tmp_path: Path) -> None:
    tree = {"a": str(tmp_path / "features"), "b": "parts/x", "c": str(tmp_path / "parts"), "d": "hello"}
    assert paths.to_here(tree, tmp_path) == tree
