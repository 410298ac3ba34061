"""Layers computed again in the backward pass: the same numbers, fewer of them kept."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mmtune import registry
from mmtune.errors import ModelError
from mmtune.llm.base import LLM
from mmtune.training import loop
from tests.llm import tiny
from tests.training import world

LORA = {"name": "hf_peft", "method": "lora", "r": 2, "lora_dropout": 0.3, "target_modules": ["q_proj", "v_proj"]}


def kept(llm):
    """Gradients of the embeddings and of all weights, and how many numbers were kept for them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 12, llm.width, generator=generator).requires_grad_()
    segments = torch.tensor([[1] * 5 + [2] * 7, [1] * 10 + [0] * 2], dtype=torch.int32)
    positions = torch.arange(12)[None].expand(2, -1)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        loss = llm.head(llm.forward(x, positions, segments)).square().mean()
    loss.backward()
    grads = {name: parameter.grad.clone() for name, parameter in llm.named_parameters() if parameter.grad is not None}
    llm.zero_grad()
    return {"x": x.grad, **grads}, sum(sizes)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_same_gradients_with_less(tmp_path, kind, training):
    llm = tiny.llm(tmp_path / "llm", kind).train(training).requires_grad_(True)
    plain, much = kept(llm)
    names = [name for name, _ in llm.named_parameters()]
    llm.checkpoint_activations()
    anew, little = kept(llm)
    assert [name for name, _ in llm.named_parameters()] == names, "nothing is renamed"
    assert plain.keys() == anew.keys() and all(torch.equal(plain[name], anew[name]) for name in plain)
    assert little < much / 2


def test_reading_with_a_cache_is_as_before(tmp_path):
    llm = tiny.llm(tmp_path / "llm")
    x = torch.randn(1, 6, llm.width)
    positions = torch.arange(6)[None]
    want = llm.forward(x, positions, None)
    llm.checkpoint_activations()
    cache = llm.new_cache()
    parts = [llm.forward(x[:, a:b], positions[:, a:b], None, cache) for a, b in ((0, 4), (4, 6))]
    assert torch.allclose(torch.cat(parts, 1), want, atol=1e-5)


@pytest.mark.parametrize("fusion", ["tokens", "early_prompts"])
def test_a_whole_run_ends_with_the_same_weights(tmp_path, fusion):
    """With dropout, which has to fall the same way both times, and with prompts in the layers."""
    groups = {"speech": {"match": ["@hf_peft"]}}
    if fusion == "early_prompts":
        groups["sight"] = {"match": ["branches.sight.connector.*", "fusion.*"]}
    changes = {"model": {"tuners": [LORA], "fusion": {"name": fusion}}, "groups": groups}
    for name in ("plain", "anew"):
        recipe = world.recipe(tmp_path / name, changes, activation_checkpointing=name == "anew")
        loop.train(recipe, tmp_path / name / "run", progress="off")
    for group in ("sight", "speech"):
        one, two = (load_file(tmp_path / name / f"run/weights/{group}.safetensors") for name in ("plain", "anew"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_model_that_cannot_says_so():
    with pytest.raises(ModelError, match="run.activation_checkpointing with Other"):
        LLM.checkpoint_activations(type("Other", (), {})())
    assert registry.find("llm", "hf").checkpoint_activations is not LLM.checkpoint_activations
