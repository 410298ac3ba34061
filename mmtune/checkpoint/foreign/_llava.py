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
from typing import Any

from mmtune.checkpoint.foreign import _llm
from mmtune.checkpoint.foreign.base import HERE, Part, Source, unlike
from mmtune.checkpoint.keymap import Rule
from mmtune.errors import CheckpointError

SIGHT = "branches.sight"
UNUSED = (
    "{a*}.embeddings.position_ids",
    "{a*}.rotary_emb.inv_freq",
)
"""Names in old files that follow from the sizes."""
CLASSLESS = ("siglip_vision_model",)
"""Towers without a class token in front."""


@dataclass(frozen=True)
class Layout:
    """How a folder spells what stands before the names."""

    root: str = ""
    """Before `vision_tower`, `multi_modal_projector` and `image_newline`."""
    tower: str = "vision_model."
    """After `vision_tower.`"""
    model: str = "language_model.model."
    head: str = "language_model.lm_head.weight"

    @classmethod
    def of(cls, names: Iterable[str], inner: str = "") -> Layout:
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


LAYOUTS = {
    "published": Layout(),
    "saved": Layout(tower=""),
    "inner": Layout("model.", "", "model.language_model.", "lm_head.weight"),
}


def tower(layout: Layout) -> list[Rule]:
    """The vision tower."""
    return [Rule(f"{layout.root}vision_tower.{layout.tower}{{name*}}", "sight:{name*}")]


def language_model(layout: Layout) -> list[Rule]:
    """The language model as it was before tuning; its head is absent where it is tied to the embedding."""
    return [
        Rule(f"{layout.model}{{name*}}", "llm:model.{name*}"),
        Rule(layout.head, "llm:lm_head.weight", optional=True),
    ]


def projector(layout: Layout, first: str, second: str) -> list[Rule]:
    """The two linear layers; `first` and `second` are their names in our connector."""
    return [
        Rule(f"{layout.root}multi_modal_projector.{theirs}.{{kind}}", f"{SIGHT}.connector.{ours}.{{kind}}")
        for theirs, ours in (("linear_1", first), ("linear_2", second))
    ]


# --------------------------------------------------------------------------------------------------------- settings


def check(hf_config: Mapping[str, Any], kinds: tuple[str, ...], several: bool = False) -> None:
    """Refuse settings that mmtune has no counterpart for.

    Args:
        hf_config: config.json. kinds: allowed values of `model_type`.
        several: whether the layout's own code reads features of several layers.

    Raises:
        CheckpointError: another architecture, another activation, no bias in the projector.
    """
    if hf_config.get("model_type") not in kinds:
        raise unlike("model_type of config.json", hf_config.get("model_type"), " or ".join(kinds))
    for name in ("vision_config", "text_config"):
        if not isinstance(hf_config.get(name), dict):
            raise CheckpointError(f"config.json without {name}", "the settings of both parts", "copy the folder again")
    for name, wanted in (("projector_hidden_act", "gelu"), ("multimodal_projector_bias", True)):
        if hf_config.get(name, wanted) != wanted:
            raise unlike(f"{name} of config.json", hf_config[name], wanted, "this variant is not supported")
    layer, strategy = (
        hf_config.get("vision_feature_layer", -2),
        hf_config.get("vision_feature_select_strategy", "default"),
    )
    layers = layer if isinstance(layer, list) and several else [layer]
    wrong = [one for one in layers if not isinstance(one, int) or isinstance(one, bool) or one == 0]
    if wrong or not layers or len(set(layers)) < len(layers):
        wanted = "one layer, or several, each once and none of them 0" if several else "one layer, not 0"
        raise unlike("vision_feature_layer", layer, wanted, "this variant is not supported")
    if strategy not in ("default", "full") or (strategy == "default" and _kind(hf_config) in CLASSLESS):
        raise unlike(
            f"vision_feature_select_strategy with a {_kind(hf_config)}",
            strategy,
            "full" if _kind(hf_config) in CLASSLESS else "default or full",
            "default leaves out the first token, which is a patch where there is no class token",
        )


def _kind(hf_config: Mapping[str, Any]) -> Any:
    return hf_config["vision_config"].get("model_type", "clip_vision_model")


def encoder(hf_config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The recipe's encoder: `hf_vision` on the part `sight`."""
    stored = hf_config.get("vision_feature_layer", -2)
    # transformers counts the embeddings as hidden state 0, we count blocks
    blocks = [one - 1 if one > 0 else one for one in (stored if isinstance(stored, list) else [stored])]
    chosen = {"layers": blocks} if isinstance(stored, list) else {"layer": blocks[0]}
    whole = hf_config.get("vision_feature_select_strategy", "default") == "full"
    # without a class token all tokens are patches, and keep their grid
    tokens = "all" if whole and _kind(hf_config) not in CLASSLESS else "patches"
    return {"name": "hf_vision", "weights": f"{HERE}sight", **chosen, "tokens": tokens, **more}


def parts(source: Source, hf_config: Mapping[str, Any], tower_name: str = "tower") -> dict[str, Part]:
    """The two base parts with their config, preprocessing and tokenizer.

    Args:
        tower_name: the tower inside the encoder.

    Raises:
        CheckpointError: no tokenizer.
    """
    sight: dict[str, Any] = {"config.json": {"model_type": "clip_vision_model", **hf_config["vision_config"]}}
    if pixels := preprocessing(source):
        sight["preprocessor_config.json"] = pixels
    text = {"model_type": "llama", **hf_config["text_config"]}
    if "tie_word_embeddings" in hf_config:  # transformers goes by the outer one
        text["tie_word_embeddings"] = hf_config["tie_word_embeddings"]
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
