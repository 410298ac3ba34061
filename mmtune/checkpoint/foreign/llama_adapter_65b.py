"""LLaMA-Adapter V2's text-only chat weights: a bias and a scale on every matrix, and the norms of the layers.

The file holds {"model": ...}, whole and not cut for model parallelism: `<matrix>_bias` and `<matrix>_scale` beside each
matrix of a layer, and norms. The scale multiplies the input, so it has the width of the input: W (s * x) + b. What was
published has no prompts; the code knows them, and a file with `adapter_query.weight` and gates gets the tuner `prompts`.

Written and read for 65B; any size of LLaMA has the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmtune.checkpoint.foreign import _llama, _llm, _meta_llama
from mmtune.checkpoint.foreign.base import Exported, Foreign, ForeignConfig, Imported, Opened, Piece, Role, Source
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError

FILE = "chat_llama_bias_scale_norm_tuning.pth"
TABLE, GATE = "adapter_query.weight", "attention.gate"


class Config(ForeignConfig):
    """No options."""


def table(heads: int, kv_heads: int, prompts: bool, last_norm: bool, ours: str = "llm.") -> KeyMap:
    """Names of the file <-> ours.

    Args:
        prompts: whether there are adapter tokens and gates.
        last_norm: whether the norm after the layers is among the tensors.
        ours: what stands before the names of the language model, `llm.` in a whole model.
    """
    model = f"{ours}model."
    rules = [
        *_llama.per_linear("{linear}_bias", "{linear}.bias", heads, kv_heads, ours=model),
        *_llama.per_linear("{linear}_scale", "{linear}.scale", heads, kv_heads, by_output=False, ours=model),
        *_llama.norms(ours=model, last=last_norm),
    ]
    if prompts:
        gate = f"layers.{{i}}.{GATE}"
        rules += [
            Rule(TABLE, f"{ours}prompts.weight"),
            Rule(gate, f"{ours}prompts.gates.{{i}}.weight", into=_flat, out=_unflat),
        ]
    return KeyMap(rules, ignore=_llama.EMPTY)


def _flat(gate: Tensor) -> Tensor:
    """[1,H,1,1] -> [H,1]"""
    return gate.reshape(-1, 1)


def _unflat(gate: Tensor) -> Tensor:
    return gate.reshape(1, -1, 1, 1)


def tuners(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Sections of the tuners that a file's tensors ask for. Raises CheckpointError for prompts that no gate counts."""
    found: list[dict[str, Any]] = [
        {"name": "bias_norm", "form": "input", "norms": "all" if "norm.weight" in tensors else "layers"}
    ]
    gates = [name for name in tensors if name.endswith(GATE)]
    if TABLE in tensors:
        rows = tensors[TABLE].shape[0]
        if not gates or rows % len(gates):
            raise CheckpointError(f"{TABLE} of {rows} rows and {len(gates)} gates", "a gate for each layer with prompts")
        found.append({"name": "prompts", "length": rows // len(gates), "layers": len(gates)})
    return found


class LlamaAdapter65B(Foreign):
    """The chat variant <-> the tuners `bias_norm` and, where it has prompts, `prompts`."""

    Config = Config
    about = "LLaMA-Adapter V2, text-only chat with bias, scale and norm tuning (65B) over LLaMA"
    roles = (
        Role("llm", "folder of LLaMA 65B, as Meta published it or in transformers' layout"),
        Role("adapter", "chat_llama65b_bias_scale_norm_tuning_v1.pth"),
    )

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for a base that is no LLaMA, or another kind of file."""
        llm, parts, pieces = _llm.place(sources["llm"])
        adapter = sources["adapter"]
        tensors = adapter.tensors(inside=("model",))
        if not any(name.endswith("attention.wq_scale") for name in tensors):
            raise CheckpointError(
                f"{adapter} has no attention.wq_scale", "the chat variant", "V2 7B: the kind llama_adapter_v2"
            )
        names = table(*_meta_llama.heads(sources["llm"]), TABLE in tensors, "norm.weight" in tensors)
        recipe = {
            "title": "LLaMA-Adapter V2, text-only chat",
            "model": {"llm": llm, "fusion": {"name": "tokens"}, "tuners": tuners(tensors)},
            "streams": {"chat": {"data": ["alpaca"], "prompt": "llama_adapter_65b"}},
            "groups": {"adapter": {"match": [f"@{one['name']}" for one in tuners(tensors)], "lr": 1.25e-4}},
        }
        facts = {"published as": "LLaMA-Adapter V2 chat (weights: research only, as LLaMA); y = W (s * x) + b"}
        return Imported(recipe, [*pieces, Piece(str(adapter), names, tensors)], parts, facts)

    def write(self, run: Opened) -> Exported:
        """Raises CheckpointError for a model with other tuners, or one that is no LLaMA."""
        sections = {one.name: one for one in run.recipe.model.tuners}
        tuned = sections.get("bias_norm")
        strange = sorted(set(sections) - {"bias_norm", "prompts"})
        if tuned is None or strange or (tuned.form, tuned.layers, tuned.linears) != ("input", None, ("*",)):
            raise CheckpointError(
                f"tuners {', '.join(sections) or '(none)'}",
                "bias_norm with form: input on every matrix, alone or with prompts",
            )
        plan = run.model.llm.model.config
        names = table(
            plan.num_attention_heads, plan.num_key_value_heads, "prompts" in sections, tuned.norms == "all"
        )
        wanted = {name for found in run.model.tuned.values() for name in found}
        ours = {name: tensor for name, tensor in run.tensors({}).items() if name in wanted}
        return Exported({FILE: {"model": names.out(ours)}})
