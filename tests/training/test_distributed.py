"""One process of several: what it cuts, what it refuses, how it sums. Whole runs are in tools/proofs/ranks.py."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmtune import registry, sharded
from mmtune.checkpoint import tensors
from mmtune.errors import ConfigError
from mmtune.llm import hf
from mmtune.training import distributed, loop
from mmtune.training.distributed import Runtime
from mmtune.training.optim import GroupOptimizer
from tests.llm import tiny
from tests.training import world
from tools.proofs import _fork


def cut(strategy, folder, chosen="adamw"):
    """What a rank has and does: one step of a tiny language model of which norms and one matrix of each layer train."""
    torch.set_num_threads(1)
    llm = hf.HF(hf.Config(folder=folder))
    for name, p in llm.named_parameters():
        p.requires_grad_("norm" in name or "o_proj" in name)
    before = {name: p.detach().clone() for name, p in llm.named_parameters()}
    kinds = {name: type(module) for name, module in llm.named_modules()}
    runtime = Runtime("cpu", strategy=strategy)
    named = {"all": [(n, p) for n, p in llm.named_parameters() if p.requires_grad]}
    model = nn.Module()
    model.llm, model.tuned = llm, {}
    runtime.parallelize(model)
    groups = runtime.refresh_parameters(llm, named)
    found = {n for n, p in llm.named_parameters() if hasattr(p, "to_local")}
    after = tensors.snapshot(dict(llm.named_parameters()))
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)

    entry = registry.find("optimizers", chosen)
    entry = entry(entry.Config(name=chosen))
    optimizer = GroupOptimizer("all", groups["all"], 0.1, max_grad_norm=0.01, entry=entry)
    x = torch.randn(4, 6, llm.width, generator=torch.Generator().manual_seed(1))[runtime.rank :: runtime.world]
    llm(x, torch.arange(6).expand(len(x), 6), None).square().sum().backward()
    runtime.sum_gradients(optimizer.parameters)
    norm, zero_grad_params = float(optimizer.norm()), optimizer.zero_grad_params()
    optimizer.step(torch.tensor(norm), 1.0)
    state = tensors.snapshot(optimizer.state())
    optimizer.load(state)  # and back again, each rank its part
    again = tensors.snapshot(optimizer.state())
    assert state.keys() == again.keys() and all(torch.equal(state[n], again[n]) for n in state)
    weights = tensors.snapshot(dict(optimizer.named))
    runtime.enter_stage("the end")
    runtime.barrier()
    runtime.close()
    return {
        "cut": sorted(found),
        "bytes": sum(p.to_local().nbytes for n, p in llm.named_parameters() if n in found),
        "norm": norm,
        "zero_grad_params": zero_grad_params,
        "odd": [n for n, module in llm.named_modules() if not isinstance(module, kinds[n])],
        "sums": {n: float(t.double().sum()) for n, t in {**weights, **state}.items()},
        "shapes": {n: list(t.shape) for n, t in state.items()},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = str(tiny.folder(tmp_path_factory.mktemp("cut") / "llm"))
    found = {}
    for strategy, ranks in (("replicate", 1), ("replicate", 2), ("shard", 2), ("shard_all", 2)):
        ended = _fork.ranks(partial(cut, strategy, folder), ranks)
        assert _fork.all_fine(ended), ended[0].said
        found[strategy, ranks] = [one.value for one in ended]
    return found


def test_what_is_cut(results):
    assert all(one["cut"] == [] for one in results["replicate", 2])
    frozen = results["shard", 2][0]["cut"]
    assert frozen and all(".layers." in name for name in frozen)
    assert not any("norm" in name or "o_proj" in name for name in frozen), "what trains stays whole"
    every = results["shard_all", 2][0]["cut"]
    assert {name for name in every if name not in frozen} == {
        name for name in results["shard_all", 2][0]["sums"] if ".layers." in name and "/" not in name
    }
    for strategy in ("shard", "shard_all"):
        one, two = results[strategy, 2]
        assert one["cut"] == two["cut"] and one["odd"] == two["odd"] == [], "modules stay what they are"
        assert 0.8 < one["bytes"] / two["bytes"] < 1.25, "each holds about half"


def test_numbers_are_those_of_one_process(results):
    alone = results["replicate", 1][0]
    for key, several in results.items():
        for one in several:
            assert one["zero_grad_params"] == [] and one["norm"] == pytest.approx(alone["norm"], rel=1e-6)
            assert one["shapes"] == alone["shapes"], "a state is whole whatever the strategy"
            assert one["sums"].keys() == alone["sums"].keys()
            for name, value in alone["sums"].items():
                assert one["sums"][name] == pytest.approx(value, abs=1e-5), (key, name)


@pytest.mark.parametrize(("name", "near"), [("adafactor", 1e-5), ("muon", 0.02)])
def test_an_optimizer_of_whole_tensors_gets_them_where_they_are_cut(name, near, tmp_path):
    """Muon computes in bfloat16, where the last bit of a gradient is the third digit of a step."""
    work = [partial(cut, strategy, str(tiny.folder(tmp_path / "llm")), name) for strategy in ("replicate", "shard_all")]
    alone, several = (_fork.ranks(one, ranks) for one, ranks in zip(work, (1, 2), strict=True))
    assert _fork.all_fine([*alone, *several]), several[0].said
    wanted = alone[0].value
    for one in several:
        assert one.value["cut"] and one.value["shapes"] == wanted["shapes"]
        for full, value in wanted["sums"].items():
            assert one.value["sums"][full] == pytest.approx(value, abs=near), full


def runtime(strategy):
    """A rank that believes that there is another one."""
    made = Runtime("cpu", strategy=strategy)
    made.world = 2
    return made


def test_nothing_to_cut_is_said(tmp_path):
    llm = hf.HF(hf.Config(folder=str(tiny.folder(tmp_path / "llm"))))
    model = nn.Module()
    model.llm, model.tuned = llm.requires_grad_(True), {}
    with pytest.raises(ConfigError, match="shard_all cuts what trains too"):
        runtime("shard").parallelize(model)


def test_what_works_on_whole_tensors_is_not_cut(tmp_path):
    llm = hf.HF(hf.Config(folder=str(tiny.folder(tmp_path / "llm"))))
    llm.step_callbacks["adalora"] = object()
    model = nn.Module()
    model.llm, model.tuned = llm.requires_grad_(False), {}
    with pytest.raises(ConfigError, match="shard_all with adalora"):
        runtime("shard_all").parallelize(model)


def test_buckets_hold_everything_once_and_no_more_than_they_may(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 100)
    grads = [torch.zeros(n, dtype=t) for n in (3, 40, 10, 10, 1) for t in (torch.float32, torch.bfloat16)]
    buckets = list(distributed._buckets(grads))
    assert sorted(id(one) for bucket in buckets for one in bucket) == sorted(map(id, grads))
    assert all(len({one.dtype for one in bucket}) == 1 for bucket in buckets)
    assert all(len(bucket) == 1 or sum(one.nbytes for one in bucket) <= 100 for bucket in buckets)
    assert list(distributed._buckets([])) == []


def test_whole_and_like_leave_plain_tensors_alone():
    tensor = torch.arange(3.0)
    assert sharded.whole(tensor) is tensor and torch.equal(sharded.like(tensor, torch.zeros(3)), tensor)


@pytest.mark.slow
def test_compiled_layers_train_the_same(tmp_path, monkeypatch):
    """With the compiler's front alone, which is where names, guards and graph breaks are decided."""
    real, calls = nn.Module.compile, []

    def compiled(self, *args, **kwargs):
        calls.append(type(self).__name__)
        real(self, *args, **{**kwargs, "backend": "eager"})

    monkeypatch.setattr(nn.Module, "compile", compiled)
    weights = {}
    for name in ("plain", "compiled"):
        changes = {"schedule": {"steps": 3, "warmup": 0}}
        recipe = world.recipe(tmp_path / f"world-{name}", changes, compile=name == "compiled")
        loop.train(recipe, tmp_path / name, progress="off")
        files = sorted((tmp_path / name / "weights").glob("*.safetensors"))
        weights[name] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    assert len(calls) == 2, "each layer"
    assert weights["plain"].keys() == weights["compiled"].keys(), "under the same names"
    for key, tensor in weights["plain"].items():
        torch.testing.assert_close(weights["compiled"][key], tensor, rtol=0, atol=1e-6)
