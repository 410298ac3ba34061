"""The way out to LLaVA and PLLaVA: settings, preprocessing, tokenizer, and what these layouts have no word for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune import dtypes, jsons
from mmtune.checkpoint.foreign import _llm
from mmtune.checkpoint.foreign._llava import CLASSLESS
from mmtune.checkpoint.foreign._open_clip import as_transformers
from mmtune.checkpoint.foreign.base import Opened
from mmtune.errors import CheckpointError

IMAGE = "<image>"
LEAVING = (
    "keep the run folder, or train a recipe that has a place: mmtune init --method lora --connector pool for videos "
    "(--layout pllava), --connector mlp with --method connector, lora or full for pictures (--layout llava_hf)"
)
"""What to choose for a run that is to leave."""
RESAMPLE = {"nearest-exact": 0, "bilinear": 2, "bicubic": 3}


def branch_of(
    run: Opened, connector: str, encoder_name: str = "hf_vision", wrong: Sequence[str] = (), tuners: str = ""
) -> tuple[Any, Any]:
    """(encoder, connector) of a run that the layout has a place for; a `clip` comes as the same `hf_vision`.

    Args:
        wrong: parts of the run that the layout has no place for besides.
        tuners: what the layout wants of them.

    Raises:
        CheckpointError: other parts than that; each is named.
    """
    wrong = list(wrong)
    names = {name: (one.encoder.name, one.connector.name) for name, one in run.recipe.model.branches.items()}
    fitting = [(encoder_name, connector), *([("clip", connector)] if encoder_name == "hf_vision" else [])]
    if len(names) != 1 or next(iter(names.values())) not in fitting:
        listed = "; ".join(f"{name}: {first} and {second}" for name, (first, second) in names.items())
        wrong.append(f"branches {listed or '(none)'}")
    else:
        (branch,) = run.model.branches.values()
        wrong += _settings_besides(branch.connector, run.model.llm.width)
    llm = run.model.llm.model
    if llm is None:
        wrong.append(f"llm {run.recipe.model.llm.name}")
    elif "model.embed_tokens" not in dict(llm.named_modules()):
        wrong.append(f"a language model of the kind {llm.config.model_type}")
    if run.recipe.model.fusion.name != "tokens":
        wrong.append(f"fusion {run.recipe.model.fusion.name}")
    if not wrong:
        is_open_clip = branch.encoder.config.name == "clip"
        return as_transformers(branch.encoder) if is_open_clip else branch.encoder, branch.connector
    raise CheckpointError(
        "this layout has no place for " + "; ".join(wrong),
        f"one branch of {' or '.join(first for first, _ in fitting)} and {connector} as published, llm hf, "
        "fusion tokens" + (f", tuners {tuners}" if tuners else ""),
        LEAVING,
    )


def _settings_besides(connector: Any, width: int) -> list[str]:
    """Settings of a connector that make it another than the published two linear layers with GELU between them."""
    config = connector.config
    wrong = [f"{name}: true" for name in ("norm", "bins", "out_norm", "match_scale") if getattr(config, name, False)]
    if getattr(config, "gain", None) is not None:
        wrong.append(f"gain: {config.gain:g}")
    if config.hidden not in (None, width):
        wrong.append(f"hidden: {config.hidden} (the language model has {width})")
    if getattr(config, "depth", 2) != 2:
        wrong.append(f"depth: {config.depth}")
    return [f"the connector's {', '.join(wrong)}"] if wrong else []


def check_inner(encoder: Any) -> None:
    """Refuse tiles that another encoder than `hf_vision` sees. Raises CheckpointError."""
    if encoder.config.name != "hf_vision":
        raise CheckpointError(f"an encoder anyres around {encoder.config.name}", "anyres around hf_vision")


def config_of(run: Opened, kind: str, encoder: Any) -> dict[str, Any]:
    """config.json for a run.

    Args:
        kind: model_type.
        encoder: our `hf_vision`.
    """
    text = run.model.llm.model.config.to_dict()
    for name in ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "_attn_implementation"):
        text.pop(name, None)
    # transformers counts the embeddings as hidden state 0, we count blocks
    layers = [layer + 1 if layer >= 0 else layer for layer in encoder.config.layers or (encoder.config.layer,)]
    _refuse_settings(encoder)
    return {
        "model_type": kind,
        "text_config": text,
        "vision_config": dict(encoder.structure),
        "vision_feature_layer": layers if encoder.config.layers else layers[0],
        "vision_feature_select_strategy": _strategy(encoder),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "image_seq_length": encoder.tokens_per_frame,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
    }


WORDLESS: dict[str, tuple[Any, ...]] = {"channels": ("rgb",), "norm": (False,), "tokens": ("patches", "all")}
"""Settings of the tower that the layout has no word for, and the values that it takes for granted."""


def _refuse_settings(encoder: Any) -> None:
    """Raise CheckpointError for settings of the tower that would be dropped without a word, all of them."""
    held = encoder.config
    wrong = [f"{name}: {getattr(held, name)}" for name, usual in WORDLESS.items() if getattr(held, name) not in usual]
    if held.size is not None and held.size != encoder.structure.get("image_size"):
        wrong.append(f"size: {held.size}")
    if wrong:
        raise CheckpointError(
            "a tower with " + ", ".join(wrong).lower(),
            "; ".join(f"{name}: {' or '.join(map(str, usual))}" for name, usual in WORDLESS.items()).lower()
            + "; size: the tower's own",
            "the layout has no word for it; keep the run folder, or train without it",
        )


def _strategy(encoder: Any) -> str:
    """`default` leaves out the first token, which a tower without class token cannot spare."""
    whole = encoder.config.tokens == "all" or encoder.structure["model_type"] in CLASSLESS
    return "full" if whole else "default"


def preprocessor_of(pixels: Any, kind: str) -> dict[str, Any]:
    """preprocessor_config.json for our `Pixels`; `kind` is the class that reads it.

    Raises:
        CheckpointError: a way of resizing that the layout does not have.
    """
    if pixels.resize not in ("crop", "pad", "stretch"):
        raise CheckpointError(
            f"an encoder with resize: {pixels.resize}",
            "crop, pad or stretch",
            "the layout has no word for it; keep the run folder, or train without it",
        )
    height, width = pixels.size
    stretch = pixels.resize == "stretch"
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_center_crop": not stretch,
        **({"do_pad": True} if pixels.resize == "pad" else {}),
        "size": {"height": height, "width": width} if stretch else {"shortest_edge": pixels.short},
        "crop_size": {"height": height, "width": width},
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "resample": RESAMPLE[pixels.interpolation],
        "rescale_factor": 1 / 255,
    }


def type_of(run: Opened) -> str:
    """The type of the files that the language model was read from; float32 where there are none."""
    folder = run.model.llm.folder
    return dtypes.stored_in(Path(folder).glob("*.safetensors")) or "float32" if folder else "float32"


def tie(hf_config: dict[str, Any], ours: dict[str, Tensor]) -> None:
    """Leave out a head that is the embedding, and say of one that is not that it is its own; both in place."""
    if not hf_config["tie_word_embeddings"]:
        return
    head, words = ours.get("llm:lm_head.weight"), ours["llm:model.embed_tokens.weight"]
    if head is None or head is words or head.is_meta or torch.equal(head, words):
        ours.pop("llm:lm_head.weight", None)
        return
    hf_config["tie_word_embeddings"] = hf_config["text_config"]["tie_word_embeddings"] = False


def tokenizer_of(run: Opened) -> dict[str, Any]:
    """The tokenizer files of the run's language model: name to path, tokenizer.json as a tree."""
    if run.model.llm.folder is None:  # a structure that is only looked at
        return {}
    folder = Path(run.model.llm.folder)
    found: dict[str, Any] = {name: folder / name for name in _llm.TOKENIZER if (folder / name).is_file()}
    if "tokenizer.json" in found:
        found["tokenizer.json"] = jsons.read(found["tokenizer.json"])
    return found


def placeholder(files: dict[str, Any], state: dict[str, Tensor], text: dict[str, Any], free: int) -> int:
    """The id that marks the places of pictures: the tokenizer's own `<image>`, or a new one.

    A new one takes the first row of the embedding that no token has, or a row that is added: there the head gets a
    copy of row 0 (the unknown token in the LLaMA family), so that it is never the likeliest.

    Args:
        files: of the tokenizer; tokenizer.json is changed where a token is added.
        state: of the language model; changed where a row is added.
        text: its config; `vocab_size` is changed with it.
        free: the first id that the tokenizer does not use. A structure that is only looked at has no tokenizer; there
            the last row stands for it.
    """
    if not files:
        return int(text["vocab_size"]) - 1
    tree = files.get("tokenizer.json")
    if not isinstance(tree, dict):
        raise CheckpointError(
            "a language model whose folder has no tokenizer.json", "a fast tokenizer", "save it with one first"
        )
    for token in tree.get("added_tokens", ()):
        if token["content"] == IMAGE:
            return int(token["id"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tree["added_tokens"] = [*tree.get("added_tokens", ()), {"id": free, "content": IMAGE, **flags}]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = state.get(name)
        if table is not None and table.shape[0] <= free:
            row = table.mean(0, keepdim=True) if "embed" in name and "lm_head.weight" in state else table[:1]
            state[name] = torch.cat([table, row.expand(free + 1 - table.shape[0], -1)])
    text["vocab_size"] = max(int(text["vocab_size"]), free + 1)
    return free
