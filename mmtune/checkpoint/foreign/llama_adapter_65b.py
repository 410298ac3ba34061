"""LLaMA-Adapter V2's text-only chat weights: a bias and a scale on every matrix, and the norms of the layers.

The file holds {"model": ...}, whole and not cut for model parallelism: `<matrix>_bias` and `<matrix>_scale` beside each
matrix of a layer, and norms. The scale multiplies the input, so it has the width of the input: W (s * x) + b. What was
published has no prompts; its code knows them, so a file with `adapter_query.weight` and gates gets the tuner `prompts`.

Written and read for 65B; any size of LLaMA has the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmtune.checkpoint.foreign import _llama, _llm, _meta_llama, _prompts
from mmtune.checkpoint.foreign.base import (
    Exported,
    Foreign,
    ForeignConfig,
    Imported,
    Opened,
    Piece,
    ReadBack,
    Role,
    Source,
)
from mmtune.checkpoint.keymap import KeyMap
from mmtune.errors import CheckpointError

FILE = "chat_llama_bias_scale_norm_tuning.pth"


class Config(ForeignConfig):
    """No options."""


def table(heads: int, kv_heads: int, sections: Sequence[Mapping[str, Any]], ours: str = "llm.") -> KeyMap:
    """Names of the file <-> ours.

    Args:
        sections: the tuners, as `tuners` gives them.
        ours: what stands before the names of the language model, `llm.` in a whole model.
    """
    model, tuned = f"{ours}model.", sections[0]
    rules = _llama.norms(ours=model, last=tuned["norms"] == "all")
    if tuned["linears"] and tuned["bias"]:
        rules += _llama.per_linear("{linear}_bias", "{linear}.bias", heads, kv_heads, ours=model)
    if tuned["linears"] and tuned["form"] == "input":
        rules += _llama.per_linear("{linear}_scale", "{linear}.scale", heads, kv_heads, by_output=False, ours=model)
    if len(sections) > 1:
        rules += _prompts.rules("", f"{ours}prompts.")
    return KeyMap(rules, ignore=_llama.EMPTY)


def tuners(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Sections of the tuners that a file's tensors ask for, `bias_norm` first."""
    bias, scale = (any(name.endswith(f"wq_{kind}") for name in tensors) for kind in ("bias", "scale"))
    found: list[dict[str, Any]] = [
        {
            "name": "bias_norm",
            "form": "input" if scale else "bias",
            "bias": bias,
            "linears": ["*"] if bias or scale else [],
            "norms": "all" if "norm.weight" in tensors else "layers",
        }
    ]
    gates = sum(name.endswith(_prompts.GATE) for name in tensors)
    if gates:  # a gate in each layer that has prompts, and in no other
        rows = len(tensors[_prompts.TABLE]) if _prompts.TABLE in tensors else gates
        found.append({"name": "prompts", "length": max(1, rows // gates), "layers": gates})
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
        llm, parts, pieces = _llm.locate(sources["llm"])
        adapter = sources["adapter"]
        tensors = adapter.tensors(inside=("model",))
        if not any(name.endswith("attention.wq_scale") for name in tensors):
            raise CheckpointError(
                f"{adapter}: {min(tensors, default='nothing')} and others, but no attention.wq_scale",
                "the chat variant",
                "the files of V2 7B are of the kind llama_adapter_v2",
            )
        sections = tuners(tensors)
        names = table(*_meta_llama.heads(sources["llm"]), sections)
        recipe = {
            "title": "LLaMA-Adapter V2, text-only chat",
            "model": {"llm": llm, "fusion": {"name": "tokens"}, "tuners": sections},
            "streams": {"chat": {"data": ["alpaca"], "prompt": "llama_adapter_65b"}},
            "groups": {"adapter": {"match": [f"@{one['name']}" for one in sections], "lr": 1.25e-4}},
        }
        facts = {"published as": "LLaMA-Adapter V2 chat (weights: research only, as LLaMA); y = W (s * x) + b"}
        return Imported(recipe, [*pieces, Piece(str(adapter), names, tensors)], parts, facts)

    def write(self, run: Opened) -> Exported:
        """Raises CheckpointError for a model with other tuners, or one that is no LLaMA."""
        sections = [one.model_dump(mode="json") for one in run.recipe.model.tuners]
        known = [one["name"] for one in sections] in (["bias_norm"], ["bias_norm", "prompts"])
        if not known or sections[0]["layers"] is not None or sections[0]["linears"] != ["*"]:
            raise CheckpointError(
                f"tuners {', '.join(one['name'] for one in sections) or '(none)'}",
                "bias_norm on every matrix of every layer, alone or followed by prompts",
            )
        if sections[0]["form"] == "output" or sections[0]["norms"] == "none":
            raise CheckpointError(
                f"bias_norm with form: {sections[0]['form']} and norms: {sections[0]['norms']}",
                "form: input, and norms of the layers: the layout has no place for others",
            )
        llm = run.model.llm
        names = table(llm.heads, llm.kv_heads, sections)
        wanted = {name for found in run.model.tuned.values() for name in found}
        ours = {name: tensor for name, tensor in run.tensors({}).items() if name in wanted}
        return Exported({FILE: {"model": names.out(ours)}})

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        sources = {"llm": run.base(), "adapter": Source("adapter", folder / FILE, scratch)}
        return [ReadBack(sources, prompt="llama_adapter_65b")]
