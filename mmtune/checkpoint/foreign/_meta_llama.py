"""A LLaMA base in Meta's own folder: its files become a part of the run in the layout of transformers.

    LLaMA/tokenizer.model
    LLaMA/7B/params.json
    LLaMA/7B/consolidated.00.pth      one file for each rank of model parallelism

A folder without any `consolidated.*.pth` is an error: the published loaders went on with random weights there, which
is the cause of most reports of meaningless answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmtune.checkpoint.foreign import _llama, _sentencepiece
from mmtune.checkpoint.foreign.base import HERE, Part, Piece, Source, unlike
from mmtune.checkpoint.keymap import KeyMap
from mmtune.errors import CheckpointError

FILES = "consolidated.*.pth"
PART = "llm"


def is_meta(source: Source) -> bool:
    """Whether a source is in Meta's layout."""
    return source.has("params.json")


def locate(source: Source) -> tuple[dict[str, Any], dict[str, Part], list[Piece]]:
    """(section `llm` of the recipe, parts, pieces) of a folder in Meta's layout.

    Raises:
        CheckpointError: no weights, no tokenizer, shards that do not fit each other, sizes that are missing.
    """
    params = source.json("params.json")
    shards = [tensors for _, tensors in source.each(FILES)]
    tensors = _llama.merge(shards, int(params.get("dim", 0)))
    rows = tensors["tok_embeddings.weight"].shape[0] if "tok_embeddings.weight" in tensors else None
    shape = _llama.Shape.read(params, rows)
    hf_config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        **shape.config(),
    }
    files = {"config.json": hf_config, **_tokenizer(source)}
    table = KeyMap(_llama.backbone(shape.heads, shape.kv_heads, ours=f"{PART}:"), ignore=_llama.EMPTY)
    return (
        {"name": "hf", "folder": f"{HERE}{PART}"},
        {PART: Part("llm.model", files)},
        [Piece(str(source), table, tensors)],
    )


def heads(source: Source) -> tuple[int, int]:
    """(heads, heads of keys and values) of a LLaMA in either layout: what the order of rows depends on.

    Raises:
        CheckpointError: a model of another architecture.
    """
    if is_meta(source):
        params = source.json("params.json")
        if "n_heads" not in params:
            raise CheckpointError(f"{source}: params.json without n_heads", "the sizes of a LLaMA")
        return int(params["n_heads"]), int(params.get("n_kv_heads") or params["n_heads"])
    hf_config = source.json("config.json")
    if hf_config.get("model_type") != "llama":
        raise unlike(f"{source}: model_type of config.json", hf_config.get("model_type"), "llama", "name a LLaMA")
    number = int(hf_config["num_attention_heads"])
    return number, int(hf_config.get("num_key_value_heads") or number)


def width(source: Source) -> int:
    """Width D of a LLaMA in either layout. Raises CheckpointError when it is not told."""
    name, key = ("params.json", "dim") if is_meta(source) else ("config.json", "hidden_size")
    number = source.json(name).get(key)
    if not isinstance(number, int) or number < 1:
        raise CheckpointError(f"{source}: {name} with {key} = {number!r}", "the sizes of a LLaMA")
    return number


def _tokenizer(source: Source) -> dict[str, Any]:
    """Files of the tokenizer, read beside the weights or one folder up. Tensors in memory have none."""
    if not source.is_folder:
        return {}
    folders = [source.path, source.path.resolve().parent]
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            more = [n for n in ("tokenizer_config.json", "special_tokens_map.json") if (folder / n).is_file()]
            return {name: folder / name for name in ("tokenizer.json", *more)}
        file = folder / "tokenizer.model"
        if file.is_file():
            return converted(file)
    raise CheckpointError(
        f"no tokenizer.model in {' or '.join(map(str, folders))}",
        "the tokenizer of the base",
        "copy tokenizer.model beside params.json",
    )


def converted(file: Path) -> dict[str, Any]:
    """A sentencepiece file -> tokenizer.json as a text, and tokenizer_config.json."""
    tree = _sentencepiece.to_json(file.read_bytes(), str(file))
    text = json.dumps(tree, ensure_ascii=False, indent=1)
    return {"tokenizer.json": text, "tokenizer_config.json": _sentencepiece.marks(tree)}
