"""Methods of peft by name: offered and refused, options checked, only the language model touched, equal at first."""

import pytest
import torch

from mmtune import config
from mmtune.errors import ConfigError, ModelError
from mmtune.tuners import hf_peft
from mmtune.tuners.hf_peft import Config, HfPeft, methods
from tests.llm import tiny

BOTH = ["q_proj", "v_proj"]
METHODS = {
    "lora": {"r": 2, "target_modules": BOTH},
    "ia3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "vera": {"r": 4, "target_modules": ["q_proj"]},
    "oft": {"oft_block_size": 8, "r": 0, "target_modules": ["q_proj"]},
    "loha": {"r": 2, "target_modules": BOTH},
    "lokr": {"r": 2, "target_modules": BOTH},
    "ln_tuning": {"target_modules": ["input_layernorm"]},
    "adalora": {"target_r": 2, "init_r": 4, "target_modules": BOTH},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llm")


def tuned(folder, **tree):
    llm = tiny.llm(folder)
    llm.requires_grad_(False)
    return llm, HfPeft(config.validate(Config, {"name": "hf_peft", **tree})).apply(llm)


def read(llm):
    ids = torch.arange(30, 40)[None]
    return llm.head(llm.forward(llm.embed(ids), torch.arange(10)[None], None))


@pytest.mark.parametrize("method", METHODS)
def test_equal_at_first_trainable_and_listed(folder, method):
    plain = tiny.llm(folder)
    llm, names = tuned(folder, method=method, **METHODS[method])
    torch.testing.assert_close(read(llm), read(plain), atol=1e-4, rtol=1e-4)
    assert names == [name for name, p in llm.named_parameters() if p.requires_grad] and names
    before = [p.detach().clone() for name, p in llm.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([p for p in llm.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        read(llm).logsumexp(-1).sum().backward()
        optimizer.step()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, [p for p in llm.parameters() if p.requires_grad], strict=True)
    )
    assert (read(llm) - read(plain)).abs().max() > 1e-6


def test_many_methods_are_offered():
    assert {"lora", "adalora", "ia3", "vera", "oft", "boft", "loha", "lokr", "hra", "ln_tuning"} <= set(methods())
    assert {"prompt_tuning", "prefix_tuning", "p_tuning"} <= set(methods())


def test_every_method_of_peft_is_offered_or_refused_with_a_reason():
    """A new version of peft with a new method stops here, so that somebody looks at what it needs."""
    assert set(hf_peft._table()) == {*methods(), *hf_peft._REFUSED}
    for method, reason in hf_peft._REFUSED.items():
        with pytest.raises(ConfigError, match=reason[:30]):
            config.validate(Config, {"name": "hf_peft", "method": method})


def test_dora_is_a_switch_of_lora(folder):
    _, names = tuned(folder, method="lora", r=2, use_dora=True, target_modules=["q_proj"])
    assert any("magnitude" in name for name in names)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"method": "lroa"}, "'lroa' is not one of .*lora"),
        ({"method": "prefix_tuning"}, "prefix_tuning: num_virtual_tokens is missing"),
        ({"method": "prefix_tuning", "num_virtual_tokens": 3, "token_dim": 8}, "no option token_dim"),
        ({"method": "adalora", "total_step": 9, "target_modules": BOTH}, "no option total_step"),
        ({"method": "adalora", "target_r": 12, "target_modules": BOTH}, "target_r must be smaller than init_r"),
        ({"method": "lora", "init_lora_weights": "eva", "target_modules": BOTH}, "asks for data"),
        ({"method": "lora", "alora_invocation_tokens": [1], "target_modules": BOTH}, "places of tokens"),
        ({"method": "lora", "rank": 8}, "lora has no option rank; it has"),
        ({"method": "lora", "peft_type": "IA3"}, "no option peft_type"),
        ({"method": "lora", "r": 2, "bias": "none", "layers_to_transform": [0], "target_modules": "q.*("}, None),
        ({}, "method: missing"),
    ],
)
def test_options_are_checked_before_anything_is_built(folder, tree, said):
    if said is None:
        with pytest.raises((ConfigError, ModelError)):
            tuned(folder, **tree)
        return
    with pytest.raises(ConfigError, match=said):
        config.validate(Config, {"name": "hf_peft", **tree})


def test_what_fits_nothing_is_refused(folder):
    with pytest.raises(ModelError, match="lora: .*no_such_proj"):
        tuned(folder, method="lora", target_modules=["no_such_proj"])


def test_survives_yaml():
    tree = {"name": "hf_peft", "method": "lora", "r": 8, "target_modules": BOTH}
    one = config.validate(Config, tree)
    assert config.validate(Config, one.model_dump(mode="json")) == one
    assert one.options == {"r": 8, "target_modules": BOTH}


def test_what_was_open_stays_open_and_is_not_claimed(folder):
    llm = tiny.llm(folder)
    llm.requires_grad_(False)
    llm.model.model.norm.weight.requires_grad_(True)
    names = HfPeft(Config(method="lora", r=2, target_modules=BOTH)).apply(llm)
    assert llm.model.model.norm.weight.requires_grad and "model.model.norm.weight" not in names
