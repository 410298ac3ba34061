"""A tiny `imagebind_huge.pth`: both towers that are read, and a tensor of a sense that is not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoint.foreign.made import Made
from tests.encoders.tiny import SOUND

SIZES = ("heads", "mels", "length", "stride")


def sound(width: int, depth: int, patch: int, positions: int, out: int) -> dict[str, Tensor]:
    """The published names and shapes of the sound tower."""
    inside = "modality_preprocessors.audio."
    shapes = {
        f"{inside}cls_token": [1, 1, width],
        f"{inside}rgbt_stem.proj.weight": [width, 1, patch, patch],
        f"{inside}rgbt_stem.norm_layer.weight": [width],
        f"{inside}rgbt_stem.norm_layer.bias": [width],
        f"{inside}pos_embedding_helper.pos_embed": [1, 1 + positions, width],
        "modality_postprocessors.audio.1.log_logit_scale": [],
        **_trunk("audio", width, depth, out),
    }
    for i in range(depth):
        for end in ("bias_k", "bias_v"):
            shapes[f"modality_trunks.audio.blocks.{i}.attn.{end}"] = [1, 1, width]
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def sight(width: int, depth: int, patch: int, positions: int, out: int) -> dict[str, Tensor]:
    """The published names and shapes of the image tower."""
    inside, trunk = "modality_preprocessors.vision.", "modality_trunks.vision."
    shapes = {
        f"{inside}cls_token": [1, 1, width],
        f"{inside}rgbt_stem.proj.1.weight": [width, 3, 2, patch, patch],
        f"{inside}pos_embedding_helper.pos_embed": [1, 1 + positions, width],
        f"{trunk}pre_transformer_layer.0.weight": [width],
        f"{trunk}pre_transformer_layer.0.bias": [width],
        **_trunk("vision", width, depth, out),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _trunk(sense: str, width: int, depth: int, out: int) -> dict[str, list[int]]:
    shapes = {
        f"modality_heads.{sense}.0.weight": [width],
        f"modality_heads.{sense}.0.bias": [width],
        f"modality_heads.{sense}.2.weight": [out, width],
    }
    for i in range(depth):
        block = f"modality_trunks.{sense}.blocks.{i}."
        for norm in ("norm_1", "norm_2"):
            shapes |= {f"{block}{norm}.weight": [width], f"{block}{norm}.bias": [width]}
        for name, into, after in (
            ("attn.in_proj_", width, 3 * width),
            ("attn.out_proj.", width, width),
            ("mlp.fc1.", width, 4 * width),
            ("mlp.fc2.", 4 * width, width),
        ):
            shapes |= {f"{block}{name}weight": [after, into], f"{block}{name}bias": [after]}
    return shapes


def positions(mels: int, length: int, patch: int, stride: int) -> int:
    return ((mels - patch) // stride + 1) * ((length - patch) // stride + 1)


def make(folder: Path) -> Made:
    s = SOUND
    count = positions(s["mels"], s["length"], s["patch"], s["stride"])
    tensors = {
        **sound(s["tower_width"], s["depth"], s["patch"], count, s["out"]),
        **{name: 0.1 * tensor for name, tensor in sight(8, 1, 2, 4, 12).items()},
        "modality_trunks.thermal.blocks.0.norm_1.weight": torch.ones(8),
    }
    path = folder / "imagebind_huge.pth"
    torch.save(tensors, path)
    lossy = tuple(
        f"modality_{where}.{sense}."
        for where in ("preprocessors", "trunks", "heads", "postprocessors")
        for sense in ("vision", "thermal")
    )
    return Made({"imagebind": path}, path, [f"{name}={s[name]}" for name in SIZES], lossy=lossy)
