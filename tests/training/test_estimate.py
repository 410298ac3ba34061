"""The arithmetic of `mmtune plan`, held against what tiny models really take on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmtune import config
from mmtune import model as models
from mmtune.checkpoint.store import groups_of
from mmtune.commands import plan
from mmtune.data.build import schedule_of
from mmtune.llm import _attention
from mmtune.recipe import Recipe
from mmtune.training import estimate
from mmtune.training.train_plan import TrainPlan
from tests.held_bytes import held_bytes

T = 64


def llama(depth: int, width: int, inner: int, heads: int, groups: int, trained: bool, bf16: bool):
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": depth, "vocab_size": 64}
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=groups)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=_attention.register()).eval()
    model.requires_grad_(False)
    model.model.layers.requires_grad_(trained)
    for parameter in model.parameters():
        if bf16 and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def kept(model, bf16: bool) -> int:
    x = torch.randn(2, T, model.config.hidden_size, dtype=torch.bfloat16 if bf16 else torch.float32).requires_grad_()
    with torch.autocast("cpu", enabled=bf16):
        call = _attention.Call(T)
        return held_bytes(lambda: model.model(inputs_embeds=x, use_cache=False, mmtune_call=call), model)


def shape(model) -> estimate.Shape:
    layers = list(model.model.layers.parameters())
    numbers, config = sum(p.numel() for p in layers), model.config
    trained = layers[0].requires_grad
    matrices = sum(p.numel() for p in layers if p.ndim == 2) if trained else 0
    split = (0, numbers) if trained else (numbers, 0)
    sizes = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    states = 8 * numbers if trained else 0
    return estimate.Shape(*split, 0, 0, matrices, 0, *sizes, 64, 64 * config.hidden_size, states, states)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("sizes", [(64, 172, 4, 4), (128, 344, 8, 2)])
def test_what_layers_keep(sizes, trained, bf16):
    two, six = (llama(depth, *sizes, trained, bf16) for depth in (2, 6))
    really = kept(six, bf16) - kept(two, bf16)  # what is there once falls out
    said = [estimate.activations(shape(model), 2 * T, bf16=bf16) for model in (two, six)]
    assert said[1] - said[0] == pytest.approx(really, rel=0.02)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_kept_where_layers_are_computed_anew(bf16):
    two, six = (llama(depth, 64, 172, 4, 4, False, bf16) for depth in (2, 6))
    for model in (two, six):
        for layer in model.model.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    really = kept(six, bf16) - kept(two, bf16)
    said = [estimate.activations(shape(model), 2 * T, activation_checkpointing=True, bf16=bf16) for model in (two, six)]
    assert said[1] - said[0] == pytest.approx(really, rel=0.05)


def test_gradients_are_what_an_optimizer_holds():
    model = llama(2, 64, 172, 4, 4, True, False)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    held = estimate.memory_of(shape(model), 1)
    assert held.gradients == held.weights == sum(parameter.nbytes for _, parameter in named)


OPTIMIZERS = ["adamw", "sgd", {"name": "sgd", "momentum": 0.9}, "adafactor", "muon"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_states_are_what_the_optimizer_of_a_group_keeps(optimizer):
    """Of the model that ships: what `mmtune plan` says, and what lies there after a step."""
    recipe = config.load(
        Recipe, "pocket", ["groups.connector.match=['*']", "model.freeze=[]", f"groups.connector.optimizer={optimizer}"]
    )
    model = models.build(recipe.model, weights=False, device="meta")
    shape = estimate.shape_of(model, groups_of(model, recipe), recipe.groups)
    model = models.build(recipe.model, weights=False)
    plan = TrainPlan(recipe, groups_of(model, recipe), schedule_of(recipe), 1)
    for group in plan.optimizers.values():
        for parameter in group.parameters:
            parameter.grad = torch.ones_like(parameter)
        group.step(group.norm(), 1.0)
    kept = [(n, t.nbytes) for g in plan.optimizers.values() for n, t in g.state().items() if not n.endswith("/step")]
    assert shape.states == sum(size for _, size in kept)
    inside = sum(size for name, size in kept if name.startswith("llm.model.model.layers."))
    assert shape.states_cut == (inside if optimizer not in ("adafactor", "muon") else 0)


def test_what_is_cut_is_shared_out():
    frozen, trained = (shape(llama(4, 64, 172, 4, 4, trained, False)) for trained in (False, True))
    whole = estimate.memory_of(frozen, 1)
    cut = estimate.memory_of(frozen, 1, "shard", devices=4)
    assert cut.weights == whole.weights // 4 and cut.gathered == 2 * whole.weights // 4
    assert estimate.memory_of(trained, 1, "shard", devices=4).weights == estimate.memory_of(trained, 1).weights
    all_cut = estimate.memory_of(trained, 1, "shard_all", devices=4)
    assert all_cut.optimizer == estimate.memory_of(trained, 1).optimizer // 4


SIZES = {"7": "lmsys/vicuna-7b-v1.5", "13": "lmsys/vicuna-13b-v1.5", "70": "meta-llama/Llama-2-70b-hf"}


@pytest.mark.parametrize(("billions", "repo"), SIZES.items())
def test_plan_of_full_size(billions, repo):
    devices = plan.Devices(8, 80.0, 989.0, 0.4, 400.0)
    said = plan.lines("llava_1_5_7b_lora", [f"model.llm.like={repo}"], devices)
    whole = float(next(line for line in said if line.startswith("replicate")).split()[2])
    assert whole == pytest.approx(2 * float(billions), rel=0.15), "two bytes for each weight, and what trains"
    assert sum("shard_all" in line for line in said) == 2
