"""Whole runs by share, alternating, by stage and mixed: who moves in which step, at which rate, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config, registry, testing
from mmtune.data.loader import Loader
from mmtune.errors import CheckpointError, ConfigError
from mmtune.recipe import Recipe
from mmtune.training import loop, setup, stepper
from mmtune.training.optim import lr_multiplier
from tests.training import world
from tests.training.test_groups import moments

STAGES = [{"streams": "pictures", "steps": 3}, {"streams": ["words"], "steps": 5}]
TURNS = {
    "share": ({"interleave": "share"}, ["words", "pictures"] * 4),
    "alternate": ({"interleave": "alternate"}, ["words", "pictures"] * 4),
    "stage": ({"interleave": "stage", "stages": STAGES}, ["pictures"] * 3 + ["words"] * 5),
    "mixed": ({"interleave": "mixed"}, ["pictures+words"] * 8),
}
OWNERS = {"pictures": "sight", "words": "speech"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("turns")


@pytest.fixture(scope="module")
def tree(folder):
    return world.tree(folder, accumulate=2, batch_tokens=64)


def recipe(tree, changes):
    return config.validate(Recipe, config.merge(tree, changes))


def weights(run):
    return {name: tensor for file in sorted((run / "weights").glob("*.safetensors")) for name, tensor in
            load_file(file).items()}  # fmt: skip


@pytest.mark.parametrize("turns", list(TURNS))
def test_who_moves_when_and_how_fast(tree, tmp_path, monkeypatch, turns):
    schedule, streams = TURNS[turns]
    seen = moments(recipe(tree, {"schedule": schedule}), monkeypatch)
    own = {"speech": {"lr_schedule": "linear", "warmup": 1, "min_lr_ratio": 0.5, "max_grad_norm": 0.25}}
    loop.train(recipe(tree, {"schedule": schedule, "groups": own}), tmp_path / "run", progress="off")
    assert [stream for stream, *_ in seen] == streams
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    parts = {"sight": "branches.sight.connector.", "speech": "norm"}
    counts = {name: sum(name in stream.split("+") for stream in streams) for name in OWNERS}
    done = dict.fromkeys(parts, 0)
    for row, (stream, moving, (old, old_states), (new, new_states)) in zip(rows, seen, strict=True):
        mine = [OWNERS[name] for name in stream.split("+")]
        assert moving == mine and row["stream"] == stream
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        for group, part in parts.items():
            # the last step of a cosine has no rate left
            assert any(part in name for name in moved) == (row.get(f"lr/{group}", 0.0) > 0)
            if group not in mine:
                assert old_states[group].keys() == new_states[group].keys()
                assert all(torch.equal(old_states[group][key], new_states[group][key]) for key in old_states[group])
                assert f"lr/{group}" not in row
        for name in stream.split("+"):
            group = OWNERS[name]
            want = (3e-3, 2, "cosine", 0.0) if group == "sight" else (1e-3, 1, "linear", 0.5)
            lr, warmup, lr_schedule, min_lr_ratio = want
            assert row[f"lr/{group}"] == pytest.approx(
                lr * lr_multiplier(done[group], counts[name], warmup, lr_schedule, min_lr_ratio)
            )
            assert row[f"loss/{name}"] > 0
            done[group] += 1


def test_a_group_may_be_clipped_by_itself(tree, tmp_path):
    made = recipe(tree, {"groups": {"speech": {"max_grad_norm": 0.25}}})
    train_plan = setup.build(made, tmp_path, loop.Runtime("cpu")).train_plan
    assert (train_plan.optimizers["sight"].max_grad_norm, train_plan.optimizers["speech"].max_grad_norm) == (1.0, 0.25)


@pytest.mark.parametrize("turns", ["stage", "mixed"])
def test_stopped_and_taken_up_again_it_is_the_same_run(tree, tmp_path, monkeypatch, turns):
    made = recipe(tree, {"schedule": TURNS[turns][0], "run": {"save_every": 2}})
    loop.train(made, tmp_path / "straight", progress="off")
    real, calls = stepper.take_step, []

    def dies(*args):
        calls.append(1)
        if len(calls) in (4, 7):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(stepper, "take_step", dies)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            loop.train(made, tmp_path / "cut", resume=resume, progress="off")
    assert loop.train(made, tmp_path / "cut", resume=True, progress="off").finished
    assert len(calls) == 8 + 1 + 2, "one step came again, and two were cut short"
    straight, cut = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert straight.keys() == cut.keys() and all(torch.equal(straight[name], cut[name]) for name in straight)


def test_a_mixed_step_is_as_large_as_any_other(tree, tmp_path, monkeypatch):
    shapes = []

    def steps(self, first=0, real=Loader.steps):
        for name, batches in real(self, first):
            shapes.append([(batch.stream, batch.tokens.shape[0]) for batch in batches])
            yield name, batches

    monkeypatch.setattr(Loader, "steps", steps)
    made = recipe(tree, {"schedule": TURNS["mixed"][0], "streams": {"words": {"share": 3}}, "run": {"accumulate": 4}})
    loop.train(made, tmp_path / "run", progress="off")
    assert all(shape == [("pictures", 1), *[("words", 1)] * 3] for shape in shapes) and len(shapes) >= 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": {"interleave": "stage"}}, "0, with interleave: stage"),
        ({"schedule": {"stages": STAGES}}, "2, with interleave: share"),
        ({"schedule": {"interleave": "stage", "stages": STAGES[:1]}}, "streams.words: in no stage"),
        ({"schedule": {"interleave": "stage", "stages": STAGES, "steps": 9}}, "9, but the stages have 8"),
        (
            {"schedule": {"interleave": "stage", "stages": [{"streams": "word", "steps": 8}]}},
            "no stream word; known: words",
        ),
        ({"schedule": {"interleave": "alternate"}, "streams": {"words": {"share": 2}}}, "alternate takes no shares"),
        ({"schedule": {"interleave": "mixed"}, "run": {"accumulate": 1}}, "a mixed step needs a micro-step for each"),
        ({"streams": {"words": {"objective": "cross_entrop"}}}, "objectives has no 'cross_entrop'"),
    ],
)
def test_turns_that_cannot_be(tree, changes, words):
    with pytest.raises(ConfigError) as caught:
        recipe(tree, changes)
    assert words in str(caught.value)


def test_a_warm_up_longer_than_what_trains_a_group_is_said(tree, tmp_path, capsys):
    made = recipe(tree, {"groups": {"sight": {"warmup": 5}}})
    loop.train(made, tmp_path / "run", dry_run=True, progress="lines")
    assert "group sight warms up over 5 steps, but only 4 steps train it" in capsys.readouterr().out


def test_a_group_that_no_step_trains_is_said(tree, tmp_path, capsys):
    """A stream whose share is so small that it comes in no step of the run."""
    made = recipe(tree, {"streams": {"pictures": {"share": 0.001}}, "schedule": {"steps": 2, "warmup": 0}})
    assert loop.train(made, tmp_path / "run", progress="lines").finished
    assert "group sight is trained by no step of this run" in capsys.readouterr().out


OBJECTIVE = """
from mmtune.objectives.cross_entropy import Config as CrossEntropyConfig
from mmtune.objectives.cross_entropy import CrossEntropy

class Settings(CrossEntropyConfig):
    name: str = "halved:Halved"
    times: float = 0.5

class Halved(CrossEntropy):
    Config = Settings
    def loss(self, model, batch):
        return {term: total * self.config.times for term, total in super().loss(model, batch).items()}
"""


def test_an_objective_of_its_own_needs_one_file(tree, tmp_path, monkeypatch):
    (tmp_path / "halved.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    plain = recipe(tree, {})
    other = recipe(tree, {"streams": {"words": {"objective": {"name": "halved:Halved", "times": 0.25}}}})
    for made, name in ((plain, "plain"), (other, "other")):
        loop.train(made, tmp_path / name, progress="off", allow_code=["halved:Halved"])
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "other")
    ]
    assert rows[1][0]["loss/words"] == pytest.approx(rows[0][0]["loss/words"] / 4, rel=1e-6)
    assert rows[1][1]["loss/pictures"] == pytest.approx(rows[0][1]["loss/pictures"], rel=0.05)


def test_an_objective_of_its_own_that_changed_is_told_on_resume(tree, tmp_path, monkeypatch):
    source = tmp_path / "quartered.py"
    source.write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    registry.allow(["quartered:Halved"])
    of_its_own = {"words": {"objective": {"name": "quartered:Halved", "times": 0.25}}}
    made = recipe(tree, {"streams": of_its_own})
    loop.train(made, tmp_path / "run", progress="off")
    assert loop.train(made, tmp_path / "run", resume=True, progress="off").finished
    registry._allowed.clear()  # another process, in which nobody has said it again
    with pytest.raises(ConfigError, match="--allow-code quartered:Halved"):
        loop.train(tmp_path / "run" / "recipe.yaml", tmp_path / "run", resume=True, progress="off")
    registry.allow(["quartered:Halved"])
    source.write_text(OBJECTIVE + "\n# another thought\n")
    with pytest.raises(CheckpointError, match=r"code\.quartered: .* -> "):
        loop.train(made, tmp_path / "run", resume=True, progress="off")
    assert loop.train(made, tmp_path / "run", resume=True, progress="off", allow=["code"]).finished


def test_the_objective_of_the_page_works(tree, tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "joint.md").read_text(encoding="utf-8")
    code = page.partition("## Objectives")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "focals.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    registry.allow(["focals:Focal"])
    testing.check("objectives", "focals:Focal", {"gamma": 1.5})
    losses = []
    for gamma in (0.0, 2.0):
        made = recipe(tree, {"streams": {"words": {"objective": {"name": "focals:Focal", "gamma": gamma}}}})
        out = tmp_path / f"gamma {gamma}"
        loop.train(made, out, progress="off")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append(next(row["loss/words"] for row in rows if "loss/words" in row))
    plain = recipe(tree, {})
    loop.train(plain, tmp_path / "plain", progress="off")
    rows = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    first = next(row["loss/words"] for row in rows if "loss/words" in row)
    assert losses[0] == pytest.approx(first, rel=1e-6) and 0 < losses[1] < losses[0]
