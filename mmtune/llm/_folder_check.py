"""What a model folder from elsewhere may say to a library that reads it: numbers, and names inside the folder.

A loader of `transformers` follows more than weights: an index that names files elsewhere, an adapter that names its
base, an attention that is fetched from a hub. Nothing of that is followed here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune import jsons
from mmtune.errors import CheckpointError

MOST: dict[str, int] = {
    "num_hidden_layers": 2000,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 26,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 30,
    "num_local_experts": 1 << 16,
    "num_experts": 1 << 16,
}
"""Sizes by which memory is taken before a weight is read, and the most that each may be."""
READ = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Endings of files that the library opens; a pipe of such a name would keep it waiting."""
INDEX = "model.safetensors.index.json"


def check(folder: Path) -> dict[str, Any]:
    """The settings in config.json. Raises CheckpointError for those that lead outside of the folder, or to a model of
    absurd size."""
    odd = sorted(path.name for path in folder.iterdir() if path.suffix in READ and not path.is_file())
    if odd:
        raise CheckpointError(
            f"{folder}: {', '.join(odd[:8])}: no plain file", "files, which can be read to their end", "copy it again"
        )
    hf_config = jsons.read(folder / "config.json")
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if os.path.lexists(folder / name):
            jsons.read(folder / name)
    jsons.sizes(hf_config, f"{folder / 'config.json'}")
    for tree in (hf_config, hf_config.get("text_config")):
        if isinstance(tree, dict):
            _sizes(folder, tree)
    attention = hf_config.get("_attn_implementation") or hf_config.get("attn_implementation")
    if isinstance(attention, str) and ("/" in attention or ":" in attention):
        raise CheckpointError(
            f"{folder}: config.json asks for the attention {attention!r}, which would be fetched",
            "a model whose attention is PyTorch's",
            "take that line out of config.json; the weights do not depend on it",
        )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} has an adapter_config.json, which names a base model somewhere else",
            "the folder of a whole language model",
            "merge the adapter into its base first, or take the file away",
        )
    if (folder / INDEX).exists():
        table = jsons.read(folder / INDEX).get("weight_map")
        plain = isinstance(table, dict) and all(isinstance(v, str) and v == Path(v).name for v in table.values())
        if not plain:
            raise CheckpointError(
                f"{folder / INDEX} has no table of tensors to files of its folder",
                "`weight_map`",
                "copy the file again",
            )
    return hf_config


def _sizes(folder: Path, tree: Mapping[str, Any]) -> None:
    wrong = []
    for name, most in MOST.items():
        value = tree.get(name)
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value <= most:
            wrong.append(f"{name} {value!r}"[:80])
    if wrong:
        raise CheckpointError(
            f"{folder}: config.json with {', '.join(wrong)}",
            "; ".join(f"{one.split()[0]} a whole number up to {MOST[one.split()[0]]:,}" for one in wrong),
            "copy the folder again",
        )
