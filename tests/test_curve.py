"""`tools/curve`: what it reads off a run, and what it asks of the command line."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("curve", TOOLS / "curve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("demo", None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten steps of half a minute; the last two were not saved."""
    rows = [{"step": step, "loss/one": 10.0 / step, "samples": 6, "samples_per_second": 0.2} for step in range(1, 11)]
    for step in (4, 8):
        (tmp_path / "run" / "state" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run" / "recipe.yaml").write_text("")
    return tmp_path / "run"


def test_minutes_are_those_of_the_steps_that_were_saved(curve: ModuleType, run: Path, tmp_path: Path) -> None:
    assert curve.progress(run) == (8, pytest.approx(4.0))
    assert curve.progress(tmp_path / "nothing yet") == (0, 0)


def test_a_run_is_begun_taken_up_and_left_alone(
    curve: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple] = []
    monkeypatch.setattr(curve, "mmtune", lambda *words: said.append(words))
    assert curve.train(tmp_path / "new", ["a=1"], 1.5, 100) is False
    assert said.pop() == ("train", "pocket", "a=1", "run.stop_after_minutes=1.5000", "--out", tmp_path / "new")
    assert curve.train(run, ["a=1"], 5.0, 100) is False
    assert said.pop() == ("train", run, "run.stop_after_minutes=1.0000", "--resume")
    curve.train(run, [], math.inf, 100)
    assert said.pop() == ("train", run, "run.stop_after_minutes=null", "--resume")
    assert curve.train(run, [], 3.0, 100) is False and curve.train(run, [], 9.0, 8) is True
    assert said == [], "neither a point that is past nor a run that is finished trains"


def test_a_point_is_measured_once(
    curve: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row: {"accuracy": 0.5, "low": 0.4, "high": 0.6, "total": 30} for row in curve.ROWS}
    said: list[tuple] = []

    def evaluate(*words: object) -> None:
        said.append(words)
        Path(str(words[-1])).write_text(json.dumps({"scores": {"plain": rows}}))

    monkeypatch.setattr(curve, "mmtune", evaluate)
    points = [curve.point(run, tmp_path, "x/*.tar", 7) for _ in range(2)]
    assert len(said) == 1 and said[0][:8] == ("eval", run, "--task", "pocket_qa", "--data", "x/*.tar", "--limit", 7)
    assert points[0] == points[1] and points[0]["loss"] == pytest.approx(sum(10 / s for s in range(1, 9)) / 8)
    lines = curve.table(points[:1], 30, "a model").splitlines()
    assert lines[-1] == "| 4.0 | 8 | 3.397 | 0.500 (0.400..0.600) | 0.500 (0.400..0.600) | 0.500 (0.400..0.600) |"
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_enough_records_for_the_questions(curve: ModuleType, tmp_path: Path) -> None:
    from mmtune.data.world.make import make_shards

    make_shards(tmp_path, 6, seed=1, level="easy", split="val", media=())
    pattern = str(tmp_path / "*.tar")
    every = curve.records_for(pattern, 10**6)
    some = curve.records_for(pattern, every[1] // 2)
    assert every[0] == 6 and 1 <= some[0] < 6 and every[1] // 2 <= some[1] < every[1]
