"""Biases, scales and norms: each form by its equation, equal to the bit at first, on several architectures."""

import pytest
import torch

from mmtune import config
from mmtune.errors import ConfigError, ModelError
from mmtune.llm.hf import HF
from mmtune.llm.hf import Config as LLMConfig
from mmtune.tuners.bias_norm import BiasNorm, Config, TunedLinear
from mmtune.tuners.hf_peft import Config as PeftConfig
from mmtune.tuners.hf_peft import HfPeft
from tests.llm import tiny

V2 = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def plain(path, kind="llama", dtype="float32"):
    model = HF(LLMConfig(folder=str(tiny.folder(path, kind)), dtype=dtype))
    model.load_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # Qwen's, which start at zero
                parameter.normal_()
    return model.requires_grad_(False)


def tune(llm, **tree):
    return BiasNorm(config.validate(Config, {"name": "bias_norm", **tree})).apply(llm)


def read(llm):
    ids = torch.arange(30, 40)[None]
    return llm.head(llm.forward(llm.embed(ids), torch.arange(10)[None], None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("form", ["output", "input", "bias"])
def test_equal_to_the_bit_at_first_and_everything_learns(tmp_path, kind, form, dtype):
    llm = plain(tmp_path, kind, dtype)
    before = read(llm)
    frozen = {name: p.clone() for name, p in llm.named_parameters()}
    names = tune(llm, form=form)
    assert torch.equal(read(llm), before)
    parameters = dict(llm.named_parameters())
    opened = [parameters[name].requires_grad_(True) for name in names]
    assert all(p.dtype == torch.float32 for p in opened)
    assert set(frozen) <= set(parameters), "names of the base stay"
    read(llm).float().logsumexp(-1).sum().backward()
    # A key's bias shifts all scores of a query alike, but for the rotation that lets a little through.
    assert [name for name in names if not parameters[name].grad.any()] == []
    with torch.no_grad():
        for parameter in opened:
            parameter -= 0.1 * parameter.grad.sign()
    assert not torch.equal(read(llm), before)
    assert all(torch.equal(frozen[name], p) for name, p in parameters.items() if name in frozen and name not in names)


def test_forms_by_their_equations():
    torch.manual_seed(0)
    base = torch.nn.Linear(3, 5, bias=False)
    x = torch.randn(2, 3)
    for form, width in (("output", 5), ("input", 3), ("bias", None)):
        layer = TunedLinear(base, form)
        with torch.no_grad():
            layer.bias.normal_()
            if width is not None:
                assert layer.scale.shape == (width,)
                layer.scale.normal_()
        w, b, s = layer.weight, layer.bias, layer.scale
        if form == "output":
            want = s * (x @ w.T + b)
        else:
            want = (x if form == "bias" else s * x) @ w.T + b
        torch.testing.assert_close(layer(x), want)
        assert layer.weight is base.weight


def test_a_bias_of_the_model_is_opened_not_doubled(tmp_path):
    llm = plain(tmp_path, "qwen2")
    names = tune(llm, form="bias", linears=["q_proj", "o_proj"], norms="none")
    prefix = "model.model.layers.0.self_attn."
    assert names[:2] == [f"{prefix}q_proj.bias", f"{prefix}o_proj.bias"]
    assert llm.get_parameter(names[0]).any() and not llm.get_parameter(names[1]).any()


def test_counts_of_the_published_variants(tmp_path):
    """D 32, feed-forward 48, 2 layers, keys and values of width 16 (grouped heads)."""
    llm = plain(tmp_path / "a")
    count = lambda names, end: sum(llm.get_parameter(n).numel() for n in names if n.endswith(end))  # noqa: E731
    names = tune(llm, form="input", norms="layers")
    assert count(names, "bias") == 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)
    assert count(names, "scale") == 2 * (6 * 32 + 48)
    assert count(names, "norm.weight") == 2 * 2 * 32
    llm = plain(tmp_path / "b")
    names = tune(llm, form="bias", linears=V2, norms="all")
    assert count(names, "bias") == 2 * (32 + 32 + 48 + 48 + 32)
    assert count(names, "norm.weight") == 5 * 32
    assert not count(names, "scale")


def test_scale_alone_leaves_a_bias_of_the_model_as_it_is(tmp_path):
    llm = plain(tmp_path, "qwen2")
    before = read(llm)
    names = tune(llm, form="output", bias=False, norms="none")
    assert names and all(name.endswith(".scale") for name in names)
    assert torch.equal(read(llm), before)
    with pytest.raises(ConfigError, match="changes nothing"):
        tune(llm, form="bias", bias=False)


def test_choice_of_layers(tmp_path):
    names = tune(plain(tmp_path), layers=[-1], norms="layers")
    assert names and all(name.startswith("model.model.layers.1.") for name in names)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"layers": [2]}, "numbers from 0 to 1"),
        ({"layers": []}, "numbers from 0 to 1"),
        ({"linears": ["q_proj", "wq"]}, "no linear layer matches wq"),
        ({"linears": [], "norms": "none"}, "something to tune"),
    ],
)
def test_what_fits_nothing_is_refused(tmp_path, tree, said):
    with pytest.raises(ModelError, match=said):
        tune(plain(tmp_path), **tree)


def test_unknown_words_are_refused():
    with pytest.raises(ConfigError, match="form"):
        config.validate(Config, {"name": "bias_norm", "form": "both"})


def test_lora_goes_around_it_and_not_the_other_way(tmp_path):
    llm = plain(tmp_path / "a")
    before = read(llm)
    names = tune(llm, form="bias", linears=V2)
    [llm.get_parameter(name).requires_grad_(True) for name in names]
    HfPeft(PeftConfig(method="lora", r=2, target_modules=["q_proj", "v_proj"])).apply(llm)
    assert torch.equal(read(llm), before)
    assert any(name.endswith("q_proj.base_layer.bias") and p.requires_grad for name, p in llm.named_parameters())
    llm = plain(tmp_path / "b")
    HfPeft(PeftConfig(method="lora", r=2, target_modules=["q_proj"])).apply(llm)
    with pytest.raises(ModelError, match="before other tuners"):
        tune(llm)


def test_builds_on_the_meta_device(tmp_path):
    folder = tiny.folder(tmp_path)
    with torch.device("meta"):
        llm = HF(LLMConfig(folder=str(folder)))
    names = tune(llm)
    assert all(llm.get_parameter(name).is_meta for name in names)
