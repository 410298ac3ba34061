"""The base language model of a published checkpoint: a folder that is used in place, or a part of the run.

A folder of transformers with safetensors stays. One with pickled weights, and one in Meta's layout, become the part
`llm`, in transformers' layout with safetensors.
"""

from __future__ import annotations

from typing import Any

from mmtune.checkpoint.foreign.base import HERE, Part, Piece, Source
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError

PART = "llm"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files beside config.json that belong to a language model, as far as they are there."""
UNUSED = ("model.layers.{i}.self_attn.rotary_emb.inv_freq",)
"""Tensors in old files that follow from the sizes."""

Location = tuple[dict[str, Any], dict[str, Part], list[Piece]]


def locate(source: Source) -> Location:
    """The recipe's `llm` section, the parts and the pieces for a folder of a language model.

    Raises:
        CheckpointError: a folder of neither layout, or without tokenizer.
    """
    if source.has("params.json"):
        from mmtune.checkpoint.foreign import _meta_llama

        return _meta_llama.locate(source)
    if not source.has("config.json"):
        raise CheckpointError(
            f"{source} has neither config.json nor params.json",
            "the folder of a language model, in the layout of transformers or of Meta",
        )
    tokenizer(source)
    if any(source.path.glob("*.safetensors")):
        return {"name": "hf", "folder": str(source.path.resolve())}, {}, []
    table = KeyMap([Rule("{name*}", f"{PART}:{{name*}}")], ignore=UNUSED)
    part = Part("llm.model", {"config.json": source.json(), **tokenizer(source)})
    return {"name": "hf", "folder": f"{HERE}{PART}"}, {PART: part}, [Piece(str(source), table, source.tensors())]


def tokenizer(source: Source) -> dict[str, Any]:
    """The files of a tokenizer, to be copied. Raises CheckpointError when there are none."""
    found = {name: source.copy(name) for name in TOKENIZER if source.has(name)}
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & found.keys():
        raise CheckpointError(
            f"{source} has no tokenizer", "tokenizer.json or tokenizer.model", "copy the whole folder again"
        )
    return found
