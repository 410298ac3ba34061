"""The three verbs of Python, and the page about them as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import mmtune
from mmtune.data.world.make import make_shards
from mmtune.errors import ConfigError, UsageError
from mmtune.recipe import Recipe
from mmtune.serve.loaded import Loaded
from tests.serve.test_run import picture, run  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()


def test_a_loaded_run_has_names_and_answers(run: Path, picture: str) -> None:  # noqa: F811
    loaded = mmtune.load(run, device="cpu")
    assert isinstance(loaded, Loaded) and isinstance(loaded.recipe, Recipe) and loaded.folder == run
    assert loaded.model.branches["sight"] is loaded.processor.branches["sight"]
    assert loaded.tokenizer is loaded.processor.tokenizer and "recipe" in repr(loaded)
    said = loaded.ask("what is this", image=picture)
    talk = mmtune.chat(run, device="cpu")
    assert said.text == str(talk.ask("what is this", image=Path(picture).read_bytes())) == talk.turns[1].text
    assert "be brief" in loaded.chat(system="be brief").rendered()


def test_a_question_takes_settings_by_name(run: Path, picture: str) -> None:  # noqa: F811
    loaded = mmtune.load(run, device="cpu")
    assert loaded.ask("what is this", image=picture, max_tokens=1, temperature=0.5, seed=3).answer_tokens == 1
    for wrong, told in (
        ({"picture": picture}, r"ask\(picture=\.\.\.\)\nexpected: image=, video=, .*max_tokens="),
        ({"max_new_tokens": 3}, r"ask\(max_new_tokens="),
        ({"max_tokens": 0}, "max_tokens 0\nexpected: at least 1"),
        ({"temperature": "hot"}, "temperature hot"),
    ):
        with pytest.raises(UsageError, match=told):
            loaded.ask("what is this", **wrong)


@pytest.mark.parametrize(
    "overrides", [{"schedule.steps": 77, "run.out": Path("x")}, ["schedule.steps=77", "run.out=x"]], ids=["map", "list"]
)
def test_train_takes_changes_to_a_recipe(monkeypatch: pytest.MonkeyPatch, overrides) -> None:
    from mmtune.training import loop

    monkeypatch.setattr(loop, "train", lambda recipe, out, **options: (recipe, out, options))
    recipe, out, options = mmtune.train("pocket", "runs/x", overrides, dry_run=True)
    assert (recipe.schedule.steps, str(recipe.run.out), out, options) == (77, "x", "runs/x", {"dry_run": True})
    again, _, _ = mmtune.train(recipe, overrides={"schedule.steps": 88})
    assert (again.schedule.steps, recipe.schedule.steps) == (88, 77)
    whole, _, _ = mmtune.train(recipe.model_dump(mode="json"))
    assert whole == recipe and mmtune.train(recipe)[0] is recipe and mmtune.train("pocket")[0] == "pocket"
    for wrong in ({"schedule.stepps": 7}, "schedule.steps=7"):
        with pytest.raises(ConfigError):
            mmtune.train("pocket", overrides=wrong)
    with pytest.raises(ConfigError, match="a recipe that is a NoneType"):
        mmtune.train(None)


def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    [shard] = make_shards(tmp_path / "shards", clips=24, seed=3, level="easy", kinds=("video", "image"))
    with tarfile.open(shard) as tar:
        for name, member in (("photo.png", "0000000.jpg"), ("clip.mp4", "0000000.mp4")):
            file = tar.extractfile(member)
            assert file is not None
            (tmp_path / name).write_bytes(file.read())
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 3 and all(lines) and lines[-2 if len(lines) > 3 else -1]
