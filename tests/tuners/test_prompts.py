"""Learned prompts with gates: plain at first, trained alone, packed, cached, stored, and the same as the fusion's."""

import copy

import pytest
import torch

from mmtune import config
from mmtune.errors import ModelError
from mmtune.tuners.hf_peft import Config as PeftConfig
from mmtune.tuners.hf_peft import HfPeft
from mmtune.tuners.prompts import Config, Prompts
from tests.llm import tiny

KINDS = ["llama", "qwen3", "mistral", "gemma3"]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", params=KINDS)
def plain(request, tmp_path_factory):
    return tiny.llm(tmp_path_factory.mktemp(request.param), request.param).requires_grad_(False)


def tuned(plain, gate=0.0, **options):
    torch.manual_seed(0)
    llm = copy.deepcopy(plain)
    names = Prompts(Config(**{"length": 3, **options})).apply(llm)
    for one in llm.prompts.gates.values():
        torch.nn.init.constant_(one.weight, gate)
    return llm, names


def ids(length, seed=0):
    return torch.randint(20, 330, (1, length), generator=torch.Generator().manual_seed(seed))


def read(llm, tokens, positions=None, segments=None, cache=None):
    positions = torch.arange(tokens.shape[1])[None] if positions is None else positions
    return llm.head(llm.forward(llm.embed(tokens), positions, segments, cache))


def test_plain_at_first_to_the_bit(plain):
    llm, names = tuned(plain)
    assert torch.equal(read(llm, ids(7)), read(plain, ids(7)))
    assert names == ["prompts.weight", "prompts.gates.1.weight"]
    assert {name: tuple(p.shape) for name, p in llm.named_parameters() if name in names} == {
        "prompts.weight": (3, 32),
        "prompts.gates.1.weight": (4, 1),
    }


def test_trains_and_nothing_else_moves(plain):
    llm, names = tuned(plain)
    own = {name: p.requires_grad_(True) for name, p in llm.named_parameters() if name in names}
    before = {name: p.detach().clone() for name, p in llm.named_parameters()}
    optimizer = torch.optim.SGD(own.values(), lr=0.5)
    for _ in range(2):  # prompts move in the second step, when the gates have opened
        optimizer.zero_grad()
        read(llm, ids(7)).logsumexp(-1).sum().backward()
        optimizer.step()
    moved = {name for name, p in llm.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(names)
    assert (read(llm, ids(7)) - read(plain, ids(7))).abs().max() > 1e-4


def test_packed_equals_alone(plain):
    llm, _ = tuned(plain, gate=0.8)
    a, b = ids(7), ids(5, 1)
    segments = torch.tensor([[1] * 7 + [2] * 5 + [0] * 2], dtype=torch.int32)
    positions = torch.tensor([[*range(7), *range(5), 0, 1]])
    together = read(llm, torch.cat([a, b, ids(2, 2)], 1), positions, segments)
    torch.testing.assert_close(together[:, :7], read(llm, a), **CLOSE)
    torch.testing.assert_close(together[:, 7:12], read(llm, b), **CLOSE)
    assert (read(llm, a) - read(plain, a)).abs().max() > 1e-3


def test_cached_equals_full(plain):
    llm, _ = tuned(plain, gate=0.8)
    tokens, cache = ids(9), llm.new_cache()
    parts = [read(llm, tokens[:, :4], cache=cache)]
    parts += [read(llm, tokens[:, t : t + 1], torch.tensor([[t]]), cache=cache) for t in range(4, 9)]
    torch.testing.assert_close(torch.cat(parts, 1), read(llm, tokens), **CLOSE)


def test_raw_and_tanh_gates(plain):
    settings = Config(length=3, gate="raw")
    raw, tanh = copy.deepcopy(plain), tuned(plain, gate=0.8)[0]
    Prompts(settings).apply(raw)
    raw.prompts.load_state_dict(tanh.prompts.state_dict())
    assert (read(raw, ids(6)) - read(tanh, ids(6))).abs().max() > 1e-4
    for one in raw.prompts.gates.values():
        one.weight.data.tanh_()
    torch.testing.assert_close(read(raw, ids(6)), read(tanh, ids(6)), **CLOSE)


def test_a_copy_has_prompts_of_its_own(plain):
    llm, _ = tuned(plain, gate=0.8)
    twin, before = copy.deepcopy(llm), read(llm, ids(5))
    torch.nn.init.zeros_(twin.prompts.weight)
    assert torch.equal(read(llm, ids(5)), before) and not torch.equal(read(twin, ids(5)), before)


def test_spare_gates(plain):
    llm, names = tuned(plain, gate=0.8, spare_gates=True)
    without, _ = tuned(plain, gate=0.8)
    assert names == ["prompts.weight", "prompts.gates.0.weight", "prompts.gates.1.weight"]
    assert torch.equal(read(llm, ids(5)), read(without, ids(5)))


def test_refused_where_it_does_not_fit(plain):
    with pytest.raises(ModelError, match="in 3 layers of a model that has 2"):
        tuned(plain, layers=3)
    llm, _ = tuned(plain)
    with pytest.raises(ModelError, match="`prompts`"):
        Prompts(Config()).apply(llm)


def test_beside_a_method_of_peft(plain):
    llm, names = tuned(plain, gate=0.8)
    expected = read(llm, ids(6))
    more = HfPeft(PeftConfig(method="lora", r=2, target_modules=["q_proj", "k_proj"])).apply(llm)
    assert not set(more) & set(names)
    torch.testing.assert_close(read(llm, ids(6)), expected, **CLOSE)


def test_survives_yaml():
    one = config.validate(Config, {"name": "prompts", "length": 4, "gate": "raw"})
    assert config.validate(Config, one.model_dump(mode="json")) == one
