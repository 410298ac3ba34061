"""`tools/claims joint`: its cells are what they say, its questions are fair, and one goes through from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmtune import config
from mmtune.data.shards import Corpus
from mmtune.data.world.make import make_shards
from mmtune.recipe import Recipe

TOOLS = Path(__file__).resolve().parents[1] / "tools"
DATA = {"train": "c/*.tar", "asked": "t/*.tar", "told": "w/*.tar", "told_asked": "v/*.tar", "features": "f"}


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    before = list(sys.path)
    import claims

    yield claims
    sys.path[:] = before
    for name in ("claims", "demo", "claim_data"):
        sys.modules.pop(name, None)


@pytest.fixture
def data(claims: ModuleType) -> ModuleType:
    import claim_data

    return claim_data


def test_ways_differ_in_who_moves_what_and_in_nothing_else(claims: ModuleType) -> None:
    for fusion in claims.FUSIONS:
        made = {
            way: config.load(Recipe, "pocket_joint", claims.recipe(way, fusion, 5, 40, (1e-3, 2e-3), DATA))
            for way in claims.WAYS
        }
        assert {one.schedule.steps for one in made.values()} == {40}
        assert {one.run.seed for one in made.values()} == {5}
        rates = {(name, group.lr) for one in made.values() for name, group in one.groups.items()}
        assert rates == {("sight", 1e-3), ("speech", 2e-3)}
        assert len({config.dump(one.model.model_copy(update={"freeze": ()})) for one in made.values()}) == 1


def test_no_told_scene_is_in_two_splits(data: ModuleType) -> None:
    rows = {split: {row["question"] for row in data.told(split, 200)} for split in ("train", "test")}
    assert len(rows["train"]) > 700 and not rows["train"] & rows["test"]
    assert list(data.told("test", 9)) == list(data.told("test", 9))
    kinds = [row["type"] for row in data.told("test", 200)]
    assert set(kinds) == {data.PLAIN, *data.FORMS} and min(kinds.count(kind) for kind in set(kinds)) > 100


def test_a_form_is_asked_for_and_kept(data: ModuleType) -> None:
    assert data.in_form("twice", "Which color?", "red") == ("Which color? Say it and repeat it.", "red red")
    assert data.in_form("hello", "Which color?", "red")[1] == "hello! red"
    asked = [wish for wish, _ in data.FORMS.values()]
    assert all(
        not any(wish in row["question"] for wish in asked) for row in data.told("test", 50) if row["type"] == data.PLAIN
    )


def test_what_is_asked_about_clips(data: ModuleType, tmp_path: Path) -> None:
    from mmtune.eval.tasks.pocket_qa import Config, PocketQA

    make_shards(tmp_path, 3, seed=1, level="easy", split="test", media=("mp4",), kinds=("video",))
    records = list(Corpus([str(tmp_path / "*.tar")], say=print))
    plain = list(PocketQA(Config()).questions(records))
    formed = list(data.Formed(Config()).questions(records))
    assert [one.id for one in plain] == [one.id for one in formed]
    assert all(len(b.answers[0]) > len(a.answers[0]) and b.sample.media for a, b in zip(plain, formed, strict=True))
    task = data.Described(Config())
    one, *_ = task.questions(records)
    assert task.score(one, one.answers[0]) == {"accuracy": 1.0}
    assert task.score(one, "nothing of the kind") == {"accuracy": 0.0}
    assert task.scores[0] == 1.0 and task.scores[1] < 0.2


def test_from_end_to_end(claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of each way, small batches, few questions."""
    threads = torch.get_num_threads()
    out = tmp_path / "out"
    words = ["--steps", "4", "--seeds", "1", "--clips", "10", "--held-out", "3", "--asked", "1", "--out", str(out)]
    words += ["--fusions", "late", "--ways", "one", "instruct", "--write", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", ["tools/claims", "joint", *words])
    claims.main()
    torch.set_num_threads(threads)
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert [row.split(" | ")[0:2] for row in rows[-2:]] == [["| late", "one group"], ["| late", "instruct"]]
    assert len({row.count("|") for row in rows[2:]}) == 1
    kept = json.loads((out / "late-one-0" / "scores.json").read_text())
    assert set(kept["scores"]) == set(claims.SCORES) and all(one["of"] for one in kept["scores"].values())
