"""Epochs in place of steps: counted from the data, the same again on resume, and said."""

from __future__ import annotations

import pytest

from mmtune import config, train
from mmtune.checkpoint import store
from mmtune.errors import DataError
from mmtune.recipe import Recipe
from mmtune.training import epochs, setup
from mmtune.training.distributed import Runtime
from tests.training import world

ONE = {"streams": {"words": None}, "groups": {"speech": None}}


def counted(folder, number, **changes):
    """A recipe of so many epochs of 16 pictures."""
    tree = config.merge(world.tree(folder), {**ONE, "schedule": {"epochs": number, "warmup": 0}, **changes})
    tree["schedule"].pop("steps")
    return config.validate(Recipe, tree)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_sees_the_data_as_often_as_it_is_told(tmp_path, capsys, workers):
    made = counted(tmp_path / "world", 3, run={"workers": workers})
    at = setup.build(made, None, Runtime("cpu"))
    feed = at.loader.steps()
    taken = sum(len(batch.ids) for _ in range(at.steps) for batch in next(feed)[1])
    at.loader.close()
    # a step is whole: the last one may take some samples of the pass behind
    assert 48 <= taken < 48 + taken / at.steps
    result = train(made, tmp_path / "run", progress="lines")
    said = capsys.readouterr().out
    assert result.finished and result.step == at.steps
    assert f"3 epochs of 16 samples are {at.steps} steps, at" in said and f"done: {at.steps} steps" in said
    assert store.read_recipe(tmp_path / "run").schedule.steps is None, "the recipe says what was asked for"


def test_a_resumed_run_ends_where_it_would_have(tmp_path):
    made = counted(tmp_path / "world", 3, run={"save_every": 2})
    whole = train(made, tmp_path / "whole", progress="off")
    train(config.validate(Recipe, config.merge(made.model_dump(mode="json"), {"run": {"stop_after_minutes": 1e-9}})),
          tmp_path / "cut", progress="off")  # fmt: skip
    again = train(made, tmp_path / "cut", resume=True, progress="off")
    assert again.finished and again.step == whole.step > 2
    for file in ("weights/sight.safetensors", f"state/step-{whole.step:08d}/optimizer.sight.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


def test_several_streams_by_share(tmp_path):
    """16 pictures and 16 texts, three steps of pictures to one of texts: 32 samples an epoch together."""
    tree = config.merge(world.tree(tmp_path), {"schedule": {"epochs": 2, "warmup": 0}})
    tree["schedule"].pop("steps")
    tree["streams"]["pictures"]["share"] = 3
    at = setup.build(config.validate(Recipe, tree), None, Runtime("cpu"))
    feed = at.loader.steps()
    taken = [sum(len(batch.ids) for batch in next(feed)[1]) for _ in range(at.steps)]
    at.loader.close()
    # measured a step of each stream; which stream the last steps are of shifts the sum by less than a step
    assert abs(sum(taken) - 64) <= max(taken)


def test_what_is_estimated_is_called_so(tmp_path, monkeypatch):
    """Steps that were counted on part of the data are an estimate; those that were counted on all of it are none."""
    made = counted(tmp_path, 2)
    at = setup.build(made, None, Runtime("cpu"))
    said = []
    for most in (16, 8):
        monkeypatch.setattr(epochs, "MEASURED", most)
        epochs.steps_of(at.loader, 2, Runtime("cpu"), said.append)
    assert "estimated" not in said[0]
    assert said[1].endswith(", estimated from 8 samples of each stream that has more")


def test_samples_that_cannot_be_used_are_counted_with_the_rest():
    spec = epochs.BatchSpec(rows=1, length=10)
    assert epochs._packed([5, 5, 5, 5], spec) == 2
    assert epochs._packed([5, None, 5, 5, None, 5], spec) == 3
    assert epochs._packed([2], spec) == 5, "fewer samples than a step takes come again"
    assert epochs._packed([10, 10, 10], spec) == 1


def test_nothing_usable_says_so(tmp_path):
    made = counted(tmp_path, 1)
    for shard in (tmp_path / "pictures").glob("*.tar*"):
        shard.unlink()
    world.write_tar(tmp_path / "pictures" / "part-0.tar", {"0.json": b"{}"})
    with pytest.raises(DataError, match=r"\b1 samples of stream pictures"):
        train(made, tmp_path / "run", progress="off")
