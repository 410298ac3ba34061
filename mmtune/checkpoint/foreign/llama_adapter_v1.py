"""LLaMA-Adapter V1: the released adapter (text) over LLaMA 7B.

The file is flat: `adapter_query.weight` [layers*L,D] and `layers.{i}.attention.gate` [1,H,1,1] for every layer of the
model. It does not say L, which is 10 as published. A training checkpoint, {"model": ...} with the whole frozen LLaMA
beside the adapter, is taken too, and the LLaMA in it is left out in favour of the base.

The training code multiplies by the gate's tanh, the release's inference code by the gate as stored: two functions of
one file. `raw_gate` chooses the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from mmtune.checkpoint.foreign import _llm, _meta_llama, _prompts
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

FILE = "llama_adapter_len{length}_layer{layers}_release.pth"
BACKBONE = (
    "tok_embeddings.weight",
    "layers.{i}.attention.{m}.weight",
    "layers.{i}.feed_forward.{m}.weight",
    "layers.{i}.{norm}.weight",
    "norm.weight",
    "output.weight",
    "rope.freqs",
)
"""Names of the frozen LLaMA in a training checkpoint."""


class Config(ForeignConfig):
    """Options of the import."""

    length: int = Field(default=10, ge=1)
    """Prompts of a layer, L; the file does not say."""
    raw_gate: bool = False
    """Multiply by the gate as stored, as the release's inference code does; otherwise by its tanh, as in training."""


def table(whole: bool = False, ours: str = "llm.prompts.") -> KeyMap:
    """Names of the file <-> ours.

    Args:
        whole: the file is a training checkpoint, which also holds the frozen LLaMA.
    """
    return KeyMap(_prompts.rules("", ours), ignore=BACKBONE if whole else ())


class LlamaAdapterV1(Foreign):
    """The released adapter <-> the tuner `prompts`."""

    Config = Config
    config: Config
    about = "LLaMA-Adapter V1 (text) over LLaMA"
    roles = (
        Role("llm", "folder of LLaMA 7B, as Meta published it or in transformers' layout"),
        Role("adapter", "llama_adapter_len10_layer30_release.pth"),
    )

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for a base that is no LLaMA, or another kind of file."""
        llm, parts, pieces = _llm.locate(sources["llm"])
        _meta_llama.heads(sources["llm"])  # refuses what is no LLaMA
        adapter = sources["adapter"]
        tensors = adapter.tensors(inside=("model",))
        _prompts.known(tensors, (_prompts.TABLE, _prompts.GATE), str(adapter), "the adapter of LLaMA-Adapter V1")
        tuner = {
            "name": "prompts",
            "length": self.config.length,
            "layers": _prompts.layers(tensors, self.config.length),
            "gate": "raw" if self.config.raw_gate else "tanh",
            "spare_gates": True,
        }
        recipe = {
            "title": "LLaMA-Adapter V1",
            "model": {"llm": llm, "fusion": {"name": "tokens"}, "tuners": [tuner]},
            "streams": {"instruct": {"data": ["alpaca"], "format": "alpaca", "prompt": "alpaca"}},
            "groups": {"adapter": {"match": ["@prompts"], "lr": 1.125e-3, "weight_decay": 0.02, "betas": [0.9, 0.95]}},
        }
        names = table(whole="tok_embeddings.weight" in tensors)
        facts = {
            "published as": "LLaMA-Adapter V1 (code GPL-3.0; weights for research only, as LLaMA)",
            "gate": "as stored, like the release's inference code" if self.config.raw_gate else "tanh, as in training",
        }
        return Imported(recipe, [*pieces, Piece(str(adapter), names, tensors)], parts, facts)

    def write(self, run: Opened) -> Exported:
        """Raises CheckpointError for a model with anything else than this tuner."""
        one_tuner(run.recipe.model.tuners)
        held = run.tensors({})
        prompts = run.model.llm.prompts
        ours = {name: tensor for name, tensor in held.items() if name.startswith("llm.prompts.")}
        for layer in range(run.model.llm.depth):  # the published code has a gate in every layer
            name = f"llm.prompts.gates.{layer}.weight"
            if name not in ours:
                ours[name] = ours[f"llm.prompts.gates.{prompts.layers[0]}.weight"].new_zeros(run.model.llm.heads, 1)
        return Exported({_file(run): table().out(ours)})

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        tuner = one_tuner(run.recipe.model.tuners)
        sources = {"llm": run.base(), "adapter": Source("adapter", folder / _file(run), scratch)}
        return [ReadBack(sources, {"length": tuner["length"], "raw_gate": tuner["gate"] == "raw"}, prompt="alpaca")]


def _file(run: Opened) -> str:
    """Name of the file that is written."""
    tuner = one_tuner(run.recipe.model.tuners)
    return FILE.format(length=tuner["length"], layers=len(run.model.llm.prompts.layers))


def one_tuner(tuners: Sequence[Any]) -> dict[str, Any]:
    """Settings of the tuner. Raises CheckpointError for any other set of tuners."""
    found = [one.model_dump(mode="json") for one in tuners]
    if [one["name"] for one in found] != ["prompts"] or found[0]["extra_gate"]:
        raise CheckpointError(
            f"tuners {', '.join(one['name'] for one in found) or '(none)'}", "`prompts` alone, without extra_gate"
        )
    return found[0]
