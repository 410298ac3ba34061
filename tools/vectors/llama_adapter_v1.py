"""LLaMA-Adapter V1: the training forward with the gate's tanh, and cached steps with both readings of the gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vectors import _llama
from vectors._base import Case, Got, Vector

from mmtune import config as configs
from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.foreign.llama_adapter_v1 import BACKBONE, Config, LlamaAdapterV1
from mmtune.checkpoint.keymap import KeyMap
from mmtune.fusion.tokens import Config as TokensConfig
from mmtune.fusion.tokens import Tokens
from mmtune.llm.hf import HF
from mmtune.tuners.prompts import Config as PromptsConfig
from mmtune.tuners.prompts import Prompts
from mmtune.types import Batch

BASE = KeyMap([], BACKBONE).ignore


def v1(vector: Vector) -> Iterator[Got]:
    c = vector.facts["config"]
    prefill, inputs = c["prefill_len"], vector.inputs
    tanh, names = model(vector, raw_gate=False)
    forward = through(tanh)
    given = _llama.batch(inputs["tokens"], inputs["labels"])
    yield from _llama.whole(tanh, forward, given, vector.outputs)
    yield Got("step_logits_tanh", _llama.steps(tanh, forward, inputs["tokens"], prefill))
    raw, _ = model(vector, raw_gate=True)
    yield Got("inference_step_logits", _llama.steps(raw, through(raw), inputs["tokens"], prefill))
    trained = {name for name, yes in vector.facts["trainable_parameters"].items() if yes}
    yield Got("trainable_parameters", sorted(names), sorted(trained))


def model(vector: Vector, raw_gate: bool) -> tuple[HF, list[str]]:
    """The vector's model by way of the importer, and the published names of what trains in a recipe for it."""
    c, weights = vector.facts["config"], vector.weights
    base = {name: tensor for name, tensor in weights.items() if any(p.fullmatch(name) for p in BASE)}
    adapter = {name: tensor for name, tensor in weights.items() if name not in base}
    kind = LlamaAdapterV1(Config(length=c["adapter_len"], raw_gate=raw_gate))
    sources = {
        "llm": Source.memory("llm", base, {"params.json": c}),
        "adapter": Source.memory("adapter", adapter),
    }
    imported = kind.read(sources)
    llm = _llama.language_model(c)
    (section,) = imported.recipe["model"]["tuners"]
    Prompts(configs.validate(PromptsConfig, section)).apply(llm)
    tensors = {name.removeprefix("llm."): tensor for name, tensor in imported.tensors().items() if ":" not in name}
    _llama.fill(llm, tensors | {f"model.{name}": tensor for name, tensor in imported.part("llm").items()})
    fresh = _llama.language_model(c)
    plain = configs.validate(PromptsConfig, {**section, "spare_gates": False})
    opened = {f"llm.{name}": torch.empty(0) for name in Prompts(plain).apply(fresh)}
    table = imported.pieces[-1].table
    return llm, [name for ours in opened if (name := table.theirs(ours))]


def through(llm: HF) -> _llama.Forward:
    fusion = Tokens(TokensConfig(), llm.width, llm.depth, llm.heads)

    def forward(batch: Batch, cache: Any) -> Tensor:
        return fusion(llm, batch, {}, cache)

    return forward


CASES: dict[str, Case] = {"LLaMA-Adapter V1": v1}
