"""Preferences on several ranks: the reference is cut as the weights are, saved whole, and comes back."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune import config
from mmtune.recipe import Recipe
from mmtune.training import loop
from tests.objectives.test_dpo import shard
from tests.training import world
from tests.training.test_resume import state
from tools.proofs import _fork

STEPS = 4


def on_ranks(tree: dict[str, Any], strategy: str, out: str, resume: bool = False) -> bool:
    """A run of one stream of pairs, which trains connector and norms, on this rank."""
    torch.set_num_threads(1)
    recipe = config.validate(Recipe, config.merge(tree, {"run": {"strategy": strategy}}))
    return loop.train(recipe, Path(out), resume=resume, progress="off").finished


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    folder = tmp_path_factory.mktemp("ranks")
    tree = world.tree(folder, save_every=2, keep=5, batch_tokens=192)
    objective = {"name": "dpo", "sft_weight": 0.5}
    pairs = {"data": [shard(folder / "pairs")], "format": "preference", "objective": objective}
    tree["streams"] = {"pictures": tree["streams"]["pictures"] | pairs}
    tree["groups"]["speech"]["streams"] = ["pictures"]
    tree["schedule"] = {"steps": STEPS, "warmup": 0}
    outs = {}
    for strategy, ranks in (("replicate", 1), ("replicate", 2), ("shard_all", 2)):
        outs[strategy, ranks] = out = folder / f"{strategy}-{ranks}"
        ended = _fork.ranks(partial(on_ranks, tree, strategy, str(out)), ranks)
        assert _fork.all_fine(ended), "\n".join(one.said for one in ended)
    outs["resumed", 2] = again = folder / "resumed"
    shutil.copytree(outs["shard_all", 2], again)
    shutil.rmtree(again / "state" / f"step-{STEPS:08d}")
    ended = _fork.ranks(partial(on_ranks, tree, "shard_all", str(again), True), 2)
    assert _fork.all_fine(ended), "\n".join(one.said for one in ended)
    return outs


def rows(out: Path) -> list[dict[str, Any]]:
    kept = ("loss/", "pictures/", "samples", "norm/")
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(kept) and "second" not in k} for row in read]


@pytest.mark.parametrize("key", [("replicate", 2), ("shard_all", 2), ("resumed", 2)], ids=lambda key: key[0])
def test_steps_are_those_of_one_process(runs: dict[tuple[str, int], Path], key: tuple[str, int]) -> None:
    alone, several = rows(runs["replicate", 1]), rows(runs[key])
    assert len(alone) == len(several) == STEPS and "loss/pictures/sft" in alone[0]
    for one, other in zip(alone, several, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    assert alone[-1]["pictures/margin"] > alone[0]["pictures/margin"]


def test_the_reference_is_saved_whole_and_never_moves(runs: dict[tuple[str, int], Path]) -> None:
    held = [state(out, step) for out in runs.values() for step in (2, STEPS)]
    names = [name for name in held[0] if "@objective.pictures" in name]
    assert len(names) > 5
    for other in held[1:]:
        assert all(torch.equal(held[0][name], other[name]) for name in names)


def test_resumed_on_ranks_it_is_the_same_run_to_the_bit(runs: dict[tuple[str, int], Path]) -> None:
    straight, resumed = (state(runs[key], STEPS) for key in (("shard_all", 2), ("resumed", 2)))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
