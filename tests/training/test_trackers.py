"""Who else is told the numbers of a run: asked for by name, refused where it is not installed, and never in the way."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mmtune import config, train
from mmtune.errors import UsageError
from mmtune.recipe import Recipe
from tests.training import world


class Fake(ModuleType):
    """A `wandb` that keeps what it is told."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__("wandb")
        self.runs: list[dict[str, Any]] = []
        self.broken = broken

    def init(self, **settings: Any) -> Any:
        run: dict[str, Any] = {"settings": settings, "rows": [], "finished": False, "metrics": []}
        self.runs.append(run)

        def log(row: dict[str, Any]) -> None:
            if self.broken:
                raise ConnectionError("no server")
            run["rows"].append(row)

        return SimpleNamespace(
            log=log,
            finish=lambda: run.update(finished=True),
            define_metric=lambda *args, **options: run["metrics"].append((args, options)),
        )


@pytest.fixture
def recipe(tmp_path: Any) -> Recipe:
    tree = config.merge(world.tree(tmp_path / "world", save_every=1), {"schedule": {"steps": 3, "warmup": 0}})
    tree["run"]["trackers"] = ["wandb"]
    return config.validate(Recipe, tree)


def test_a_tracker_that_is_not_installed_stops_the_run_before_it_begins(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"run.trackers names wandb(.|\n)*pip install 'mmtune\[wandb\]'"):
        train(recipe, tmp_path / "run", progress="off")
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_is_told_every_row_and_knows_a_run_again(recipe, tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    short = recipe.model_copy(update={"run": recipe.run.model_copy(update={"stop_after_minutes": 1e-9})})
    assert train(short, tmp_path / "run", progress="off").step == 1
    assert train(recipe, tmp_path / "run", resume=True, progress="off").finished
    first, second = fake.runs
    assert first["settings"]["id"] == second["settings"]["id"] and first["settings"]["name"] == "run"
    assert first["settings"]["config"]["schedule"]["steps"] == 3
    assert [row["step"] for row in first["rows"] + second["rows"]] == [1, 2, 3] and second["finished"]
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for row, told in zip(written, first["rows"] + second["rows"], strict=True):
        assert told == {name: value for name, value in row.items() if not isinstance(value, str)}
    assert not (tmp_path / "run/tensorboard").exists(), "it was not asked for"
    train(recipe, tmp_path / "other", progress="off")
    assert fake.runs[2]["settings"]["id"] != first["settings"]["id"]


def test_a_tracker_that_breaks_costs_its_numbers_only(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Fake(broken=True))
    assert train(recipe, tmp_path / "run", progress="off").finished
    assert "metrics are not being written: no server; training goes on" in capsys.readouterr().err
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3


def test_settings_in_a_run_folder_reach_no_tracker(recipe, tmp_path, monkeypatch, capfd):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    (tmp_path / "run" / "wandb" / "settings").write_text("[default]\nbase_url = https://elsewhere.example\n")
    assert train(recipe, tmp_path / "run", progress="off").finished
    assert fake.runs == [] and "nothing is logged to wandb" in capfd.readouterr().err
