"""What LLaVA and PLLaVA have in common: one folder of transformers with vision tower, projector and language model.

Names are spelled in several ways, all of which are read:

    vision_tower.vision_model.*   multi_modal_projector.*        language_model.model.*    language_model.lm_head.weight
    vision_tower.*                multi_modal_projector.*        language_model.model.*    language_model.lm_head.weight
    model.vision_tower.*          model.multi_modal_projector.*  model.language_model.*    lm_head.weight

The first is that of the published folders, the second what transformers 5 writes, the third its modules' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.checkpoint.foreign import _files, _llm
from mmtune.checkpoint.foreign.base import HERE, Opened, Part, Source, unlike
from mmtune.checkpoint.keymap import Rule
from mmtune.errors import CheckpointError

SIGHT = "branches.sight"
IMAGE = "<image>"
UNUSED = (
    "{a*}.embeddings.position_ids",
    "{a*}.rotary_emb.inv_freq",
)
"""Names in old files that follow from the sizes."""
RESAMPLE = {"nearest-exact": 0, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class Spelling:
    """How a folder spells what stands before the names."""

    root: str = ""
    """Before `vision_tower`, `multi_modal_projector` and `image_newline`."""
    tower: str = "vision_model."
    """After `vision_tower.`"""
    model: str = "language_model.model."
    head: str = "language_model.lm_head.weight"

    @classmethod
    def of(cls, names: Iterable[str], inner: str = "") -> Spelling:
        """The spelling of a file.

        Args:
            inner: what stands between `language_model.` and the names of the model, such as peft's wrapping.
        """
        names = list(names)
        root = "model." if any(name.startswith("model.vision_tower.") for name in names) else ""
        old = any(name.startswith("language_model.") for name in names)
        tower = "vision_model." if any(f"{root}vision_tower.vision_model." in name for name in names) else ""
        if old:
            return cls(root, tower, f"language_model.{inner}model.", f"language_model.{inner}lm_head.weight")
        return cls(root, tower, "model.language_model.", "lm_head.weight")


SPELLINGS = {
    "published": Spelling(),
    "saved": Spelling(tower=""),
    "inner": Spelling("model.", "", "model.language_model.", "lm_head.weight"),
}


def tower(spelling: Spelling) -> list[Rule]:
    """The vision tower."""
    return [Rule(f"{spelling.root}vision_tower.{spelling.tower}{{name*}}", "sight:{name*}")]


def language_model(spelling: Spelling) -> list[Rule]:
    """The language model as it was before tuning; its head is absent where it is tied to the embedding."""
    return [
        Rule(f"{spelling.model}{{name*}}", "llm:model.{name*}"),
        Rule(spelling.head, "llm:lm_head.weight", optional=True),
    ]


def projector(spelling: Spelling, first: str, second: str) -> list[Rule]:
    """The two linear layers; `first` and `second` are their names in our connector."""
    return [
        Rule(f"{spelling.root}multi_modal_projector.{theirs}.{{kind}}", f"{SIGHT}.connector.{ours}.{{kind}}")
        for theirs, ours in (("linear_1", first), ("linear_2", second))
    ]


# --------------------------------------------------------------------------------------------------------- settings


def check(plan: Mapping[str, Any], kinds: tuple[str, ...]) -> None:
    """Refuse settings that mmtune has no counterpart for.

    Args:
        plan: config.json. kinds: allowed values of `model_type`.

    Raises:
        CheckpointError: another architecture, several feature layers, another activation, no bias in the projector.
    """
    if plan.get("model_type") not in kinds:
        raise unlike("model_type of config.json", plan.get("model_type"), " or ".join(kinds))
    for name in ("vision_config", "text_config"):
        if not isinstance(plan.get(name), dict):
            raise CheckpointError(f"config.json without {name}", "the settings of both parts", "copy the folder again")
    for name, wanted in (("projector_hidden_act", "gelu"), ("multimodal_projector_bias", True)):
        if plan.get(name, wanted) != wanted:
            raise unlike(f"{name} of config.json", plan[name], wanted, "this variant is not supported")
    if not isinstance(plan.get("vision_feature_layer", -2), int):
        raise unlike("vision_feature_layer", plan["vision_feature_layer"], "one layer", "this variant is not supported")


def encoder(plan: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The recipe's encoder: `hf_vision` on the part `sight`."""
    stored = plan.get("vision_feature_layer", -2)
    # transformers counts the embeddings as hidden state 0, we count blocks
    layer = stored - 1 if stored > 0 else stored
    whole = plan.get("vision_feature_select_strategy", "default") == "full"
    tokens = "all" if whole else "patches"
    return {"name": "hf_vision", "weights": f"{HERE}sight", "layer": layer, "tokens": tokens, **more}


def parts(source: Source, plan: Mapping[str, Any], tower_name: str = "tower") -> dict[str, Part]:
    """The two base parts with their config, preprocessing and tokenizer.

    Args:
        tower_name: the tower inside the encoder.

    Raises:
        CheckpointError: no tokenizer.
    """
    sight: dict[str, Any] = {"config.json": {"model_type": "clip_vision_model", **plan["vision_config"]}}
    if pixels := preprocessing(source):
        sight["preprocessor_config.json"] = pixels
    text = {"model_type": "llama", **plan["text_config"]}
    if "tie_word_embeddings" in plan:  # transformers goes by the outer one
        text["tie_word_embeddings"] = plan["tie_word_embeddings"]
    return {
        "sight": Part(f"{SIGHT}.encoder.{tower_name}", sight),
        "llm": Part("llm.model", {"config.json": text, **_llm.tokenizer(source)}),
    }


def preprocessing(source: Source) -> dict[str, Any]:
    """Settings of the image preprocessing, wherever the folder has them; empty when it has none."""
    if source.has("preprocessor_config.json"):
        return source.json("preprocessor_config.json")
    if source.has("processor_config.json"):
        return dict(source.json("processor_config.json").get("image_processor") or {})
    return {}


# -------------------------------------------------------------------------------------------------------------- out


def branch_of(run: Opened, connector: str, encoder_name: str = "hf_vision") -> tuple[Any, Any]:
    """(encoder, connector) of a run that the layout has a place for.

    Raises:
        CheckpointError: other parts than that; each is named.
    """
    wrong = []
    names = {name: (one.encoder.name, one.connector.name) for name, one in run.recipe.model.branches.items()}
    if list(names.values()) != [(encoder_name, connector)]:
        listed = "; ".join(f"{name}: {first} and {second}" for name, (first, second) in names.items())
        wrong.append(f"branches {listed or '(none)'}")
    if run.recipe.model.llm.name != "hf":
        wrong.append(f"llm {run.recipe.model.llm.name}")
    if run.recipe.model.fusion.name != "tokens":
        wrong.append(f"fusion {run.recipe.model.fusion.name}")
    if not wrong:
        branch = next(iter(run.model.branches.values()))
        strange = [name for name, _ in branch.connector.named_parameters() if name.startswith(("scale.", "norm."))]
        config = branch.connector.config
        if strange or config.hidden not in (None, run.model.llm.width) or getattr(config, "depth", 2) != 2:
            wrong.append("a connector that is not two linear layers of the language model's width")
        if not wrong:
            return branch.encoder, branch.connector
    raise CheckpointError(
        "a run with " + "; ".join(wrong),
        f"one branch of {encoder_name} and {connector}, llm hf, fusion tokens",
        "other runs have no place in this layout",
    )


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
    for name in ("transformers_version", "_name_or_path"):
        text.pop(name, None)
    layer = encoder.config.layer
    return {
        "model_type": kind,
        "text_config": text,
        "vision_config": dict(encoder.structure),
        "vision_feature_layer": layer + 1 if layer >= 0 else layer,
        "vision_feature_select_strategy": "full" if encoder.config.tokens == "all" else "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "image_seq_length": encoder.tokens_per_frame,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
    }


def preprocessor_of(pixels: Any, kind: str) -> dict[str, Any]:
    """preprocessor_config.json for our `Pixels`; `kind` is the class that reads it.

    Raises:
        CheckpointError: a way of resizing that the layout does not have.
    """
    if pixels.resize not in ("crop", "pad", "stretch"):
        raise CheckpointError(f"an encoder with resize: {pixels.resize}", "crop, pad or stretch")
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


def tokenizer_of(run: Opened) -> dict[str, Any]:
    """The tokenizer files of the run's language model: name to path, tokenizer.json as a tree."""
    if run.model.llm.folder is None:  # a structure that is only looked at
        return {}
    folder = Path(run.model.llm.folder)
    found: dict[str, Any] = {name: folder / name for name in _llm.TOKENIZER if (folder / name).is_file()}
    if "tokenizer.json" in found:
        found["tokenizer.json"] = _files.read_json(found["tokenizer.json"])
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
