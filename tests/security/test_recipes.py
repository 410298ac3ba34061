"""A recipe, and a run that somebody hands over, run no code that nobody asked for."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import mmtune
from mmtune import config, registry
from mmtune.checkpoint import store
from mmtune.cli import app
from mmtune.errors import ConfigError, MmtuneError
from mmtune.paths import PACKAGE
from mmtune.recipe import Recipe
from mmtune.serve import chat as chats
from mmtune.serve.experts import Panel
from mmtune.serve.run_info import RunInfo
from mmtune.training.loop import train
from tests.security.hostile import Canary
from tests.serve.fake import FakeEngine

EVIL = "evil_canary:Entry"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """A module `evil_canary` that can be imported, and leaves the canary when it is."""
    made = Canary(tmp_path / "canary")
    made.module(tmp_path / "installed", "evil_canary")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    sys.modules.pop("evil_canary", None)
    yield made
    sys.modules.pop("evil_canary", None)


def tree() -> dict:
    return config.read("pocket", ["chat.prompt=pocket"])


def at(path: str, entry: dict) -> dict:
    """The recipe with an entry put at a dotted path."""
    changed = json.loads(json.dumps(tree()))
    node, *keys = changed, *path.split(".")
    for key in keys[:-1]:
        node = node[int(key) if isinstance(node, list) else key]
    node[keys[-1]] = entry
    return changed


def places() -> dict[str, dict]:
    """Every room that a recipe names an entry of, with a class from outside in its place."""
    branch = next(iter(tree()["model"]["branches"]))
    stream = next(iter(tree()["streams"]))
    entry = {"name": EVIL, "size": 3, "deep": {"er": [1, "x"]}}
    return {
        "encoder": at(f"model.branches.{branch}.encoder", entry),
        "connector": at(f"model.branches.{branch}.connector", entry),
        "llm": at("model.llm", entry),
        "fusion": at("model.fusion", entry),
        "tuner": at("model.tuners", [entry]),
        "objective": at(f"streams.{stream}.objective", entry),
        "format": at(f"streams.{stream}.format", entry),
        "expert": at("chat.experts", [entry, EVIL]),
    }


@pytest.mark.parametrize("room", ["encoder", "connector", "llm", "fusion", "tuner", "objective", "format", "expert"])
def test_reading_a_recipe_imports_nothing_of_it(canary: Canary, tmp_path: Path, room: str) -> None:
    written = places()[room]
    recipe = config.validate(Recipe, written)
    assert canary.sung == []
    again = config.parse(config.dump(recipe), "again")  # its options are kept as they were
    assert config.validate(Recipe, again) == recipe
    assert str({"name": EVIL, "size": 3, "deep": {"er": [1, "x"]}}) in str(again)
    (tmp_path / "recipe.yaml").write_text(config.dump(recipe))
    assert store.read_recipe(tmp_path) == recipe and RunInfo.__name__
    assert canary.sung == []
    if room != "expert":
        with pytest.raises(ConfigError, match=f"{EVIL}: code outside mmtune.*\n.*\n.*--allow-code {EVIL}"):
            train(recipe, tmp_path / "run")
    assert canary.sung == [] and not (tmp_path / "run").exists()


def test_showing_a_recipe_imports_nothing_of_it(canary: Canary, tmp_path: Path, capsys) -> None:
    from mmtune.commands import show

    for room, written in places().items():
        (tmp_path / f"{room}.yaml").write_text(config.dump(written))
        if room not in ("expert", "objective", "format"):  # the others are no part of what is shown
            show.run(str(tmp_path / f"{room}.yaml"), [], False)
            out = capsys.readouterr().out
            assert f"--allow-code {EVIL}" in out and "llm: " in out
    show.run(str(tmp_path / "objective.yaml"), [], False)
    assert "--allow-code" not in capsys.readouterr().out
    assert canary.sung == []


@pytest.mark.parametrize(
    "words",
    ["plan {0}", "show {0} --groups", "data check x.tar --recipe {0}", "replay {1}", "train {0} --out {2}",
     "export {1} --layout llava_hf --out {2}", "eval {1} --task pocket_qa --data x.tar", "chat {1} what?",
     "chat {1} what? --no-experts"],
    ids=lambda words: "_".join(words.split()[:2]),
)  # fmt: skip
def test_no_command_imports_it_unasked(canary: Canary, tmp_path: Path, words: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in (run / "recipe.yaml", tmp_path / "recipe.yaml"):
        file.write_text(config.dump(config.validate(Recipe, places()["connector"])))
    (run / "skipped.jsonl").write_text('{"stream": "x", "id": "y", "reason": "non_finite", "detail": "", "step": 1}\n')
    line = [word.format(tmp_path / "recipe.yaml", run, tmp_path / "out") for word in words.split()]
    with contextlib.suppress(MmtuneError, SystemExit):
        app(line, standalone_mode=False)
    assert canary.sung == []


def test_python_says_it_too(canary: Canary, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(config.dump(config.validate(Recipe, places()["llm"])))
    with pytest.raises(ConfigError, match=f"--allow-code {EVIL}, or allow_code="):
        mmtune.load(tmp_path)
    assert canary.sung == []
    with pytest.raises(ConfigError, match="evil_canary:Entry"):
        mmtune.load(tmp_path, allow_code=[EVIL])
    assert canary.sung == ["evil_canary"]


def test_what_lies_in_the_current_folder_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here", "installed"):
        package = tmp_path / folder / f"{folder}-1.0.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder}\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text(f"[mmtune.experts]\n{folder} = {folder}_module:Entry\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "here"), str(tmp_path / "installed"), *sys.path])
    assert registry.plugins("experts") == {"installed": "installed_module:Entry"}


def test_what_is_allowed_is_imported(canary: Canary) -> None:
    registry.allow([EVIL])
    with pytest.raises(ConfigError, match="evil_canary:Entry"):
        config.validate(Recipe, places()["connector"])
    assert canary.sung == ["evil_canary"]


def test_options_are_checked_when_it_is_allowed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_objective.py").write_text(
        "from mmtune.objectives.cross_entropy import CrossEntropy\n"
        "from mmtune.objectives.base import ObjectiveConfig\n"
        "class Settings(ObjectiveConfig):\n    name: str = 'x'\n    times: float = 1.0\n"
        "class Own(CrossEntropy):\n    Config = Settings\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stream = next(iter(tree()["streams"]))
    made = config.validate(Recipe, at(f"streams.{stream}.objective", {"name": "own_objective:Own", "tmies": 2}))
    with pytest.raises(ConfigError, match="tmies: unknown key; the known keys are times"):
        train(made, tmp_path / "run", allow_code=["own_objective:Own"])


@pytest.mark.parametrize("word", ["os", "os:path.join", "evil canary:X", "", "../x:Y", ":X"])
def test_what_is_allowed_has_the_form_of_a_name(word: str) -> None:
    with pytest.raises(ConfigError, match="package.module:Class"):
        registry.allow([word])


def test_every_command_that_reads_a_recipe_or_a_run_takes_the_word() -> None:
    checked = []

    def walk(group, path: str) -> None:
        for name, one in group.commands.items():
            if hasattr(one, "commands"):
                walk(one, f"{path} {name}")
            elif any(re.search(r"\b(RUN|RECIPE)\b", parameter.metavar or "") for parameter in one.params):
                assert "--allow-code" in {word for parameter in one.params for word in parameter.opts}, f"{path} {name}"
                checked.append(name)

    walk(typer.main.get_command(app), "mmtune")
    assert {"train", "chat", "eval", "show", "replay", "plan", "import", "export", "check"} <= set(checked)


# ------------------------------------------------------------------------------------------------ experts of a run


@pytest.fixture
def handed_over(tmp_path: Path) -> Path:
    """The packaged run as somebody else might have changed it."""
    run = tmp_path / "run"
    shutil.copytree(PACKAGE / "pocket" / "chat", run)
    changed = config.read(run / "recipe.yaml")
    changed["chat"]["experts"] = [{"name": EVIL}, {"name": "caption", "run": "/etc"}]
    (run / "recipe.yaml").write_text(config.dump(changed))
    return run


def test_experts_of_a_run_wait_for_a_word(canary: Canary, handed_over: Path, monkeypatch, capsys) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(RunInfo, "load", lambda plan: FakeEngine())
    monkeypatch.setattr(chats, "_one_answer", lambda talk, *_: seen.append(talk.experts.names) or 0)
    chats.command(chats.Options(words=[str(handed_over), "What is this?"]))
    told = f"experts that the run names are off: {EVIL}, caption; --experts-of-run turns them on"
    assert told in capsys.readouterr().err
    assert mmtune.chat(handed_over).experts.names == [] and "experts that the run names" in capsys.readouterr().err
    assert seen == [[]] and canary.sung == []


def test_turning_them_on_is_no_word_for_code(canary: Canary, handed_over: Path) -> None:
    for options in ({"no_experts": True}, {"experts_of_run": True}):
        plan_options = chats.Options(words=[str(handed_over), "what?"], **options)
        if "experts_of_run" in options:
            with pytest.raises(ConfigError, match=f"--allow-code {EVIL}"):
                chats.command(plan_options)
        else:
            assert chats._of_run(RunInfo.read(handed_over), plan_options) == ()
    with pytest.raises(ConfigError, match=f"--allow-code {EVIL}"):
        mmtune.chat(handed_over, experts="of_run")
    assert canary.sung == []


def test_an_expert_that_a_person_names_is_imported_by_its_process_only(canary: Canary) -> None:
    with pytest.raises(ConfigError, match="evil_canary:Entry"):
        Panel([EVIL])
    assert canary.sung == ["evil_canary"] and "evil_canary" not in sys.modules
