"""LLaMA-Adapter V2's text-only chat variant: bias, scale and norm on every matrix, with and without prompts."""

from __future__ import annotations

from collections.abc import Iterator

from vectors import _llama
from vectors._base import Case, Got, Vector

from mmtune import config, registry
from mmtune.checkpoint.foreign import _llama as names
from mmtune.checkpoint.foreign import _prompts
from mmtune.checkpoint.foreign import llama_adapter_65b as importer
from mmtune.checkpoint.keymap import KeyMap
from mmtune.recipe import ModelSection


def chat(vector: Vector) -> Iterator[Got]:
    """Base and adapter lie in one file here, and apart where they are published."""
    c, weights = vector.facts["config"], vector.weights
    heads = c["n_heads"], c.get("n_kv_heads") or c["n_heads"]
    base = [n for n in weights if n.endswith(".weight") and "norm" not in n and n != _prompts.TABLE]
    adapter = {name: tensor for name, tensor in weights.items() if name not in base}
    llm = _llama.language_model(c)
    tuners = importer.tuners(adapter)
    section = {"llm": {"name": "hf", "folder": "."}, "fusion": {"name": "tokens"}, "tuners": tuners}
    for tuner in config.validate(ModelSection, section).tuners:
        registry.find("tuners", tuner.name)(tuner).apply(llm)
    backbone = [rule for rule in names.backbone(*heads, ours="model.") if "norm" not in rule.theirs]
    table = importer.table(*heads, tuners, ours="")
    _llama.fill(llm, {**KeyMap(backbone).into({name: weights[name] for name in base}), **table.into(adapter)})

    def forward(given, cache):
        return llm.forward(llm.embed(given.tokens), given.positions, None, cache)

    tokens = vector.inputs["tokens"]
    yield from _llama.whole(llm, forward, _llama.batch(tokens, vector.inputs["labels"]), vector.outputs)
    yield Got("step_logits", _llama.steps(llm, forward, tokens, c["prefill_len"]))


CASES: dict[str, Case] = {"LLaMA-Adapter V2 text-only chat (65B layout)": chat}
