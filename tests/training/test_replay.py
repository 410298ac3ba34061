"""A sample that is not finite is named, and fails again when it is tried alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mmtune.commands import replay as command
from mmtune.data import ledger
from mmtune.encoders.clip import Clip
from mmtune.errors import DataError, UsageError
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.training import loop
from mmtune.training.replay import replay
from tests.training import world


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return world.recipe(tmp_path_factory.mktemp("replay"), batch_tokens=192)


def poison(monkeypatch, kind="nan"):
    """The encoder stumbles over pictures that are nearly white, as an overflow would make it do."""
    real = Clip.forward

    def forward(self, x, frames):
        features = real(self, x, frames)
        white = x.flatten(1).mean(1) > 1.2
        assert not white.all() or len(white) < 3
        features.tokens[white] = float(kind)
        return features

    monkeypatch.setattr(Clip, "forward", forward)


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_the_guilty_are_named_and_fail_again(recipe, tmp_path, monkeypatch, capsys, kind):
    poison(monkeypatch, kind)
    try:
        loop.train(recipe, tmp_path / "run", progress="lines")
    except DataError as error:
        assert "in a row" in str(error)
    rows = [row for row in ledger.read(tmp_path / "run/skipped.jsonl") if row["reason"] == "non_finite"]
    nonfinite_samples = {row["id"] for row in rows if row["fails_alone"]}
    assert nonfinite_samples and len(nonfinite_samples) < len(rows), "some of the samples of a bad step, not all"
    assert all(row["stream"] == "pictures" and row["epoch"] in (0, 1) for row in rows)
    # every fourth sample is white
    assert {int(name.rpartition("/")[2]) % 4 for name in nonfinite_samples} == {3}
    assert "not finite alone: part-" in capsys.readouterr().out

    _, trials = replay(tmp_path / "run", device="cpu")
    assert {trial.id for trial in trials} == {row["id"] for row in rows}
    assert {trial.id for trial in trials if not trial.finite} == nonfinite_samples
    assert all(set(trial.norms) == {"sight"} for trial in trials)
    before = sorted((tmp_path / "run").rglob("*"))
    command.run(tmp_path / "run", sorted(nonfinite_samples)[:1], "cpu")
    said = capsys.readouterr().out
    assert (
        "NOT FINITE" in said and sorted(nonfinite_samples)[0] in said and "1 of 1 samples are not finite alone" in said
    )
    assert sorted((tmp_path / "run").rglob("*")) == before, "nothing of the run is touched"


def test_innocent_samples_and_wrong_ids(recipe, tmp_path):
    loop.train(recipe, tmp_path / "run", progress="off")
    with pytest.raises(UsageError, match=r"skipped\.jsonl"):
        replay(tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="has part-0000/999999"):
        replay(tmp_path / "run", ["part-0000/999999"], device="cpu")
    step, trials = replay(tmp_path / "run", ["part-0000/000003"], device="cpu")
    assert step == 8 and len(trials) == 2, "both streams have a sample of that name"
    assert all(trial.finite and all(norm > 0 for norm in trial.norms.values()) for trial in trials)


def test_a_loss_that_fails_in_company_only_blames_nobody(recipe, tmp_path, monkeypatch):
    real = CrossEntropy.loss

    def loss(self, model, batch):
        bad = torch.nan if len(batch.ids) > 1 else 1.0
        return {term: total * bad for term, total in real(self, model, batch).items()}

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    with pytest.raises(DataError, match="3 steps in a row"):
        loop.train(recipe, tmp_path / "run", progress="off")
    rows = list(ledger.read(tmp_path / "run/skipped.jsonl"))
    assert rows and not any(row["fails_alone"] for row in rows)


def test_the_command_is_there():
    code = "import sys; sys.argv = ['mmtune', 'replay', '--help']; from mmtune.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "each alone" in done.stdout
