"""Too little memory: the step again in smaller pieces, with the same result; and parts of batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config
from mmtune.errors import ModelError
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.recipe import Recipe
from mmtune.training import loop, setup
from mmtune.training.split_batch import padding, singles, split_batch
from mmtune.types import IGNORE, Batch
from tests.losses import cross_entropy
from tests.training import world


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return world.tree(tmp_path_factory.mktemp("memory"), batch_tokens=256)


def recipe(tree, **run):
    return config.validate(Recipe, config.merge(tree, {"run": run}))


def room_for(monkeypatch, rows, when="forward"):
    """Passes with more rows than this find no room. Returns the rows of every pass that was tried."""
    real, tried = CrossEntropy.loss, []

    def loss(self, model, batch):
        tried.append(batch.tokens.shape[0])
        if tried[-1] > rows and when == "forward":
            raise torch.OutOfMemoryError("no room")
        found = real(self, model, batch)
        if tried[-1] > rows:
            full = RuntimeError("can't allocate memory: 9 bytes")
            found["cross_entropy"].register_hook(lambda _: (_ for _ in ()).throw(full))
        return found

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    return tried


def weights(run):
    files = sorted((run / "weights").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_smaller_pieces_are_the_same_step(tree, tmp_path, monkeypatch, capsys, when):
    loop.train(recipe(tree), tmp_path / "whole", progress="off")
    loop.train(recipe(tree, batch_tokens=64, accumulate=4), tmp_path / "small", progress="off")
    tried = room_for(monkeypatch, 1, when)
    loop.train(recipe(tree, out_of_memory="smaller"), tmp_path / "pieces", progress="lines")
    assert "from step 0 on in 4 pieces each" in capsys.readouterr().out
    assert max(tried) > 1 and tried.count(1) > 16, "the fault fired, and went away"
    pieces = weights(tmp_path / "pieces")
    for name in ("whole", "small"):
        other = weights(tmp_path / name)
        assert pieces.keys() == other.keys()
        assert max(float((pieces[key] - other[key]).abs().max()) for key in other) <= 1e-6, name


CHILD = """
import resource, sys
import torch
from pathlib import Path
from mmtune import config
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.recipe import Recipe
from mmtune.training import loop

tree, out = config.read(sys.argv[1], []), Path(sys.argv[2])
real, full = CrossEntropy.loss, []

def loss(self, model, batch):
    if not full:  # from the first pass on: what the system gives is bounded
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + (700 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        full.append(False)
    try:
        torch.empty(batch.tokens.shape[0] * (256 << 20), dtype=torch.uint8)  # 256 MB for each row
    except RuntimeError as error:
        full.append(str(error))
        raise
    return real(self, model, batch)

CrossEntropy.loss = loss
loop.train(config.validate(Recipe, tree), out, progress="lines")
assert "allocate memory" in full[1], full
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_gets_no_more_memory_from_the_system(tree, tmp_path):
    """Not a planted error: the allocator is refused, in a child with a bound on its address space."""
    loop.train(recipe(tree, batch_tokens=64, accumulate=4), tmp_path / "small", progress="off")
    (tmp_path / "recipe.yaml").write_text(config.dump(recipe(tree, out_of_memory="smaller")))
    (tmp_path / "child.py").write_text(CHILD)
    words = [sys.executable, tmp_path / "child.py", tmp_path / "recipe.yaml", tmp_path / "run"]
    child = subprocess.run(words, cwd=Path.cwd(), env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True,
                           text=True, timeout=300)  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert "from step 0 on in" in child.stdout and "can't allocate memory" in child.stdout
    found, small = weights(tmp_path / "run"), weights(tmp_path / "small")
    assert found.keys() == small.keys()
    assert max(float((found[key] - small[key]).abs().max()) for key in small) <= 1e-6


def test_without_the_option_the_run_stops_and_says_where(tree, tmp_path, monkeypatch):
    room_for(monkeypatch, 1)
    with pytest.raises(ModelError, match=r"out of memory in step 0, on rank 0, in rows of \d+ tokens, \d at a time"):
        loop.train(recipe(tree), tmp_path / "run", progress="off")
    assert not (tmp_path / "run/weights").exists()


def test_one_row_is_the_smallest_piece(tree, tmp_path, monkeypatch):
    tried = room_for(monkeypatch, 0)
    with pytest.raises(ModelError, match="no room"):
        loop.train(recipe(tree, out_of_memory="smaller"), tmp_path / "run", progress="off")
    assert 1 in tried


# ------------------------------------------------------------------------------------------------- parts of a batch


def batch():
    """Three rows: two samples with an item each, padding behind; one with two items; one of text."""
    segments = torch.tensor([[1, 1, 2, 2, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.int32)
    tokens = torch.arange(15).view(3, 5)
    positions = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 2, 3, 4], [0, 1, 2, 0, 0]])
    slots = torch.tensor([[0, 1, 1, 1], [0, 2, 3, 1], [1, 1, 0, 2], [1, 1, 3, 1]])
    media = torch.arange(4.0).view(4, 1, 1)
    frames = torch.ones(4, 1, dtype=torch.bool)
    items = {"sight": media}, {"sight": frames}, {"sight": slots}
    return Batch(tokens, tokens + 1, positions, segments, *items, "s", tuple("abcd"))


def test_rows_keep_what_is_theirs():
    first, second, third = split_batch(batch(), 3)
    assert (first.ids, second.ids, third.ids) == (("a", "b"), ("c",), ("d",))
    assert first.slots["sight"].tolist() == [[0, 1, 1, 1], [0, 2, 3, 1]] and first.media[
        "sight"
    ].flatten().tolist() == [0, 1]
    assert second.slots["sight"].tolist() == [[0, 1, 0, 2], [0, 1, 3, 1]] and third.media == {} == third.slots
    assert torch.equal(torch.cat([one.tokens for one in split_batch(batch(), 2)]), batch().tokens)
    whole = batch()
    assert split_batch(whole, 1)[0] is whole


def test_as_many_pieces_as_asked_for():
    parts = split_batch(batch(), 5)
    assert len(parts) == 5 and sum(len(part.ids) for part in parts) == 4
    empty = [part for part in parts if not part.ids]
    assert len(empty) == 2 and all(bool((part.labels == IGNORE).all()) and not part.media for part in empty)
    assert padding(batch()).tokens.shape == (1, 5) and not padding(batch()).segments.any()


def test_samples_alone():
    a, b, c, d = singles(batch())
    assert [one.ids for one in (a, b, c, d)] == [("a",), ("b",), ("c",), ("d",)]
    assert b.tokens.tolist() == [[2, 3]] and b.labels.tolist() == [[3, 4]] and b.positions.tolist() == [[0, 1]]
    assert b.slots["sight"].tolist() == [[0, 1, 1, 1]] and b.media["sight"].flatten().tolist() == [1]
    assert c.slots["sight"].tolist() == [[0, 1, 0, 2], [0, 1, 3, 1]] and d.slots == {}
    assert all(bool((one.segments == 1).all()) for one in (a, b, c, d))


def test_a_sample_alone_has_the_loss_it_has_in_company(tree, tmp_path):
    run = setup.build(recipe(tree), tmp_path, loop.Runtime("cpu"))
    steps = run.loader.steps()
    for _ in range(2):
        _, (packed,) = next(steps)
        with torch.no_grad():
            together = float(cross_entropy(run.model, packed)[0])
            alone = sum(float(cross_entropy(run.model, one)[0]) for one in singles(packed))
        assert bool((packed.segments > 1).any()) and alone == pytest.approx(together, rel=1e-5)
    steps.close()
