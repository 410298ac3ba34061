"""Validation while training: what it measures, and that a run with it is the run without it, to the bit."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config
from mmtune.checkpoint import store
from mmtune.collate import collate
from mmtune.data import ledger
from mmtune.data.loader import Skip
from mmtune.data.shards import Corpus
from mmtune.errors import ConfigError, DataError
from mmtune.recipe import Recipe
from mmtune.training import loop, setup
from mmtune.training.validate import Validator
from mmtune.training.validation_loop import ValidationLoop
from tests.losses import cross_entropy
from tests.training import world
from tests.training.test_resume import CHANGES
from tools.proofs import _fork

STEPS = 6


def held_out(folder: Path) -> str:
    """Ten pictures that are not trained on, one of them damaged and one record broken."""
    pattern = world.shards(folder, shards=1, each=10)
    bad = {"x.png": b"no picture", "x.json": json.dumps({"conversations": world.said("<image>?", "red")}).encode()}
    world.write_tar(folder / "part-9999.tar", {**bad, "y.json": b"{"})
    return pattern


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two streams, two groups, dropout; pictures held out, and questions about them."""
    folder = tmp_path_factory.mktemp("validate")
    made = config.merge(world.tree(folder, save_every=1, keep=10), CHANGES)
    made["schedule"] = {"steps": STEPS, "warmup": 1}
    data = held_out(folder / "held")
    section = {"every": 2, "streams": {"val": {"data": [data], "like": "pictures"}}}
    return {**made, "eval": {**section, "task": {"name": "qa", "max_tokens": 2}, "data": [data]}}


def recipe(tree: dict[str, Any], **changes: Any) -> Recipe:
    return config.validate(Recipe, config.merge(tree, changes))


@pytest.fixture(scope="module")
def straight(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert loop.train(recipe(tree), out, progress="off").finished
    return out


def rows(out: Path, validations: bool) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("samples_per_second", "tokens_per_second", "data_wait", "eval/seconds")
    return [{k: v for k, v in row.items() if k not in timed} for row in found if ("eval/loss" in row) is validations]


def state(out: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    folder = out / "state" / f"step-{step:08d}"
    return {f"{f.stem}/{k}": t for f in folder.glob("*.safetensors") for k, t in load_file(f).items()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_the_same_with_and_without(tree, straight, tmp_path, workers):
    """Weights, optimizers, losses and the place in the data; with data workers the same validation, too."""
    without = recipe(tree, eval={"every": 0}, run={"workers": workers})
    loop.train(without, tmp_path / "run", progress="off")
    assert equal(state(straight), state(tmp_path / "run")) and len(state(straight)) > 10
    assert rows(straight, False) == rows(tmp_path / "run", False)
    assert rows(tmp_path / "run", True) == [] and not (tmp_path / "run/best").exists()
    if workers:
        loop.train(recipe(tree, run={"workers": workers}), tmp_path / "with", progress="off")
        assert rows(straight, True) == rows(tmp_path / "with", True)
        assert equal(state(straight), state(tmp_path / "with"))


def test_the_loss_is_the_mean_over_all_held_out_tokens(tree, straight):
    """By hand, one sample at a time, with the weights at the end."""
    model, _, told = store.load_run(straight)
    validation = ValidationLoop(setup.build(told, None, loop.Runtime("cpu")), print)
    (stream,) = validation.streams
    total, weight, used = 0.0, 0.0, 0
    found = [validation._validator._loader.make("val", place) for place in range(len(stream.corpus))]
    for one in found:
        if not isinstance(one, Skip):
            with torch.no_grad():
                loss, count = cross_entropy(model, collate([[one]]))
            total, weight, used = total + float(loss), weight + count, used + 1
    validations = rows(straight, True)
    assert [row["step"] for row in validations] == [2, 4, 6] and used == 10
    last = validations[-1]
    assert last["eval/val/loss"] == last["eval/loss"] == pytest.approx(total / weight, rel=1e-5)
    assert last["eval/val/samples"] == 10
    assert {"eval/qa/exact_match", "eval/qa/f1", "eval/qa/rouge_l", "eval/qa/perplexity"} <= set(last)
    assert last["eval/qa/perplexity"] == pytest.approx(2.718281828 ** (total / weight), rel=1e-3), "the same answers"


def test_bad_held_out_samples_are_named_once_and_count_for_no_limit(straight):
    found = list(ledger.read(straight / "skipped.jsonl"))
    assert [(row["stream"], row["reason"], row["held_out"], row["step"]) for row in found] == [
        ("val", "wrong_media_type", True, 1), ("val", "bad_json", True, 1),
    ]  # fmt: skip
    info = json.loads((straight / f"state/step-{STEPS:08d}/run.json").read_text())
    assert (info["ledger"]["bad"], info["validation"]["last"]) == (0, 6)


def test_the_best_state_is_a_run_of_its_own(straight):
    losses = {row["step"]: row["eval/loss"] for row in rows(straight, True)}
    step = min(losses, key=losses.get)
    model, _, told = store.load_run(straight / "best")
    weights = {name.partition("/")[2]: t for name, t in state(straight, step).items() if name.startswith("weights/")}
    now = model.state_dict()
    assert weights and all(torch.equal(now[name], tensor) for name, tensor in weights.items())
    assert told == store.read_recipe(straight)
    assert f"best state: step {step}, loss {losses[step]:.6g}" in (straight / "best/card.md").read_text()


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """SIGTERM in the middle of a validation, so many times."""
    real, left = Validator._batches, [times]

    def batches(self, *args):
        for batch in real(self, *args):
            if left[0]:
                left[0] -= 1
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Validator, "_batches", batches)


def test_stopped_in_the_middle_of_a_validation_and_gone_on(tree, straight, tmp_path, monkeypatch):
    out = tmp_path / "run"
    interrupted(monkeypatch, 1)
    cut = loop.train(recipe(tree), out, progress="off")
    assert (cut.step, cut.code) == (2, 143) and rows(out, True) == [] and list(ledger.read(out / "skipped.jsonl")) == []
    assert loop.train(recipe(tree), out, resume=True, progress="off").finished
    assert equal(state(straight), state(out)) and rows(straight, True) == rows(out, True)
    assert (out / "skipped.jsonl").read_bytes() == (straight / "skipped.jsonl").read_bytes()
    weights = "best/weights/sight.safetensors"
    assert (out / weights).read_bytes() == (straight / weights).read_bytes()


def test_gone_on_after_every_step(tree, straight, tmp_path):
    """Six starts, each of one step; and the best state so far is known to each."""
    out, short = tmp_path / "run", recipe(tree, run={"stop_after_minutes": 1e-9})
    for step in range(1, STEPS + 1):
        assert loop.train(short, out, resume=step > 1, progress="off").step == step
    assert equal(state(straight), state(out)) and rows(straight, True) == rows(out, True)
    assert (out / "best/card.md").read_text() == (straight / "best/card.md").read_text()
    assert (out / "skipped.jsonl").read_bytes() == (straight / "skipped.jsonl").read_bytes()


def on_ranks(tree: dict[str, Any], out: str) -> Any:
    torch.set_num_threads(1)
    ended = loop.train(recipe(tree, run={"device": "cpu"}), out, progress="off")
    return [ended.finished, ended.step]


def test_two_ranks_measure_the_same(tree, tmp_path):
    """Without dropout, whose draws are a rank's own."""
    plain = config.merge(tree, {"model": {"tuners": [{**tree["model"]["tuners"][0], "lora_dropout": 0.0}]}})
    loop.train(recipe(plain), tmp_path / "alone", progress="off")
    for strategy in ("replicate", "shard_all"):
        out, made = tmp_path / strategy, config.merge(plain, {"run": {"strategy": strategy}})
        ended = _fork.ranks(partial(on_ranks, made, str(out)), 2)
        assert _fork.all_fine(ended), ended[0].said + ended[1].said
        for ours, theirs in zip(rows(out, True), rows(tmp_path / "alone", True), strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (strategy, name)
        named = [[row["id"] for row in ledger.read(run / "skipped.jsonl")] for run in (out, tmp_path / "alone")]
        assert named[0] == named[1] and len(named[0]) == 2


def test_a_fraction_is_split_off_by_name(tree, tmp_path):
    """Every sample is on one side, the same one in another folder and beside other shards."""
    pattern = world.shards(tmp_path / "a", shards=4, each=50)
    sides = [Corpus(pattern, held_out=0.2, only_held_out=only) for only in (False, True)]
    ids = [{side.id(key) for key in side.samples()} for side in sides]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 200 and 20 < len(ids[1]) < 60
    assert sides[0].fingerprint() != sides[1].fingerprint() != Corpus(pattern).fingerprint()
    (tmp_path / "b").mkdir()
    for shard in (tmp_path / "a").glob("part-000[02].tar"):
        (tmp_path / "b" / shard.name).write_bytes(shard.read_bytes())
    again = Corpus(str(tmp_path / "b"), held_out=0.2, only_held_out=True)
    there = {one for one in ids[1] if one.startswith(("part-0000/", "part-0002/"))}
    assert {again.id(key) for key in again.samples()} == there
    made = recipe(tree, eval={"streams": {"val": None}, "fraction": 0.3, "task": None})
    at = setup.build(made, None, loop.Runtime("cpu"))
    both = {name: set(map(stream.corpus.id, stream.corpus.samples())) for name, stream in at.loader.streams.items()}
    for stream in ValidationLoop(at, print).streams:
        held = set(map(stream.corpus.id, stream.corpus.samples()))
        assert held and not held & both[stream.name] and len(held) + len(both[stream.name]) == 16


def test_what_cannot_be_measured_is_told_before_the_first_step(tree, tmp_path):
    with pytest.raises(ConfigError, match=r"eval.best is 'val/f1'\nexpected: one of loss, val/loss, qa/exact_match"):
        loop.train(recipe(tree, eval={"best": "val/f1"}), tmp_path / "run", progress="off")
    world.write_tar(tmp_path / "bad.tar", {"y.json": b"{"})
    nothing = {"val": {"data": [str(tmp_path / "bad.tar")], "like": "pictures"}}
    with pytest.raises(DataError, match="not one of 1 held-out samples of val can be used"):
        loop.train(recipe(tree, eval={"streams": nothing}), None, dry_run=True, progress="off")
    with pytest.raises(DataError, match="not one of 1 held-out samples of val can be used"):
        loop.train(recipe(tree, eval={"streams": nothing}), tmp_path / "run", progress="off")
    assert not (tmp_path / "run/metrics.jsonl").exists(), "no step was taken towards it"


def test_said(tree, tmp_path, capsys):
    loop.train(recipe(tree, schedule={"steps": 2}), tmp_path / "run", progress="lines")
    said = capsys.readouterr().out
    assert "held out  val 12; validated every 2 steps, the best state is chosen by loss" in said
    assert "validation after step 2: loss" in said and "; the best so far" in said
    assert "samples that could not be used: held out: " in said
