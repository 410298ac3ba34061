"""What ImageBind's file calls its tensors, for every importer whose system has an ImageBind tower in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from mmtune.checkpoint.foreign.base import unlike
from mmtune.checkpoint.keymap import Rule
from mmtune.errors import CheckpointError

Modality = Literal["audio", "vision"]

ENCODERS: dict[Modality, str] = {"audio": "imagebind_audio", "vision": "imagebind_vision"}
HEADS: dict[Modality, int] = {"audio": 12, "vision": 16}
"""Attention heads of the published towers; the file does not tell."""
SIDE = 224
"""Height and width in pixels of the published image tower."""
LICENCE = "CC BY-NC-SA 4.0, not for commercial use"

_OTHERS = ("text", "depth", "thermal", "imu")
_POSITION = r"modality_(?:preprocessors|trunks|heads|postprocessors)\.(?:{})\..+"


def rules(modality: Modality, ours: str, theirs: str = "") -> list[Rule]:
    """The table of one tower.

    Args:
        ours: what stands before the names of the encoder's state_dict, as `encoder:` or `sound:`.
        theirs: what stands before the published names, as `audio_encoder.`.
    """
    inside, trunk = f"{theirs}modality_preprocessors.{modality}.", f"{theirs}modality_trunks.{modality}."
    block, own = f"{trunk}blocks.{{i}}.", f"{ours}tower.blocks.{{i}}."
    common = [
        Rule(f"{inside}cls_token", f"{ours}tower.class_token"),
        Rule(f"{inside}pos_embedding_helper.pos_embed", f"{ours}tower.positions"),
        Rule(f"{block}norm_1.{{end}}", f"{own}norm1.{{end}}"),
        Rule(f"{block}attn.in_proj_{{end}}", f"{own}qkv.{{end}}"),
        Rule(f"{block}attn.out_proj.{{end}}", f"{own}out.{{end}}"),
        Rule(f"{block}norm_2.{{end}}", f"{own}norm2.{{end}}"),
        Rule(f"{block}mlp.fc{{n}}.{{end}}", f"{own}fc{{n}}.{{end}}"),
        Rule(f"{theirs}modality_heads.{modality}.0.{{end}}", f"{ours}tower.norm.{{end}}"),
        Rule(f"{theirs}modality_heads.{modality}.2.weight", f"{ours}tower.head.weight"),
    ]
    if modality == "vision":
        return [
            *common,
            Rule(f"{inside}rgbt_stem.proj.1.weight", f"{ours}tower.stem.weight"),
            Rule(f"{trunk}pre_transformer_layer.0.{{end}}", f"{ours}tower.pre_norm.{{end}}"),
        ]
    return [
        *common,
        Rule(f"{inside}rgbt_stem.proj.weight", f"{ours}tower.stem.weight"),
        Rule(f"{inside}rgbt_stem.norm_layer.{{end}}", f"{ours}tower.stem_norm.{{end}}"),
        Rule(f"{block}attn.bias_k", f"{own}extra_key"),
        Rule(f"{block}attn.bias_v", f"{own}extra_value"),
        Rule(f"{theirs}modality_postprocessors.audio.1.log_logit_scale", f"{ours}tower.log_scale"),
    ]


def pick(tensors: Mapping[str, Tensor], modality: Modality) -> dict[str, Tensor]:
    """What is left of ImageBind's whole file without the towers of the other senses; strange names stay in.

    Raises CheckpointError where nothing belongs to the tower.
    """
    others = re.compile(_POSITION.format("|".join([*_OTHERS, *(m for m in ENCODERS if m != modality)])))
    mine = re.compile(_POSITION.format(modality))
    if not any(mine.fullmatch(name) for name in tensors):
        raise unlike(
            f"the first of {len(tensors)} names", min(tensors, default="none"), f"modality_trunks.{modality}.*"
        )
    return {name: tensor for name, tensor in tensors.items() if not others.fullmatch(name)}


def encoder(
    tensors: Mapping[str, Tensor],
    modality: Modality,
    theirs: str = "",
    heads: int | None = None,
    mels: int = 128,
    length: int = 204,
    stride: int = 10,
) -> dict[str, Any]:
    """The encoder's section of a recipe, with the sizes that shapes tell, and the in-place mean that the published
    weights of the sound tower always need.

    Args:
        heads: null is as published.
        mels, length, stride: of the sound tower, which its file does not tell one by one.

    Raises CheckpointError where a tensor is missing or misshapen from which a size would be read.
    """
    inside = f"{theirs}modality_preprocessors.{modality}."
    token = _shaped(tensors, f"{inside}cls_token", 3)
    head = _shaped(tensors, f"{theirs}modality_heads.{modality}.2.weight", 2)
    stem = f"{inside}rgbt_stem.proj{'.1' if modality == 'vision' else ''}.weight"
    kernel = _shaped(tensors, stem, 4 if modality == "audio" else 5)
    positions = _shaped(tensors, f"{inside}pos_embedding_helper.pos_embed", 3)
    start = f"{theirs}modality_trunks.{modality}.blocks."
    numbers = {n.removeprefix(start).partition(".")[0] for n in tensors if n.startswith(start)}
    section: dict[str, Any] = {
        "name": ENCODERS[modality],
        "tower_width": token[-1],
        "depth": len(numbers),
        "heads": heads or HEADS[modality],
        "out": head[0],
        "patch": kernel[-1],
    }
    if modality == "audio":
        return section | {"centre": "running", "mels": mels, "length": length, "stride": stride}
    side = math.isqrt(positions[1] - 1) * kernel[-1]
    return section if side == SIDE else section | {"size": side}


def _shaped(tensors: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != rank:
        seen = f"{list(tensors[name].shape)}" if name in tensors else "missing"
        raise CheckpointError(f"{name} is {seen}", f"a tensor with {rank} axes, as ImageBind's file has it")
    return tuple(tensors[name].shape)
