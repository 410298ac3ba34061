"""P2P's files (`ConvNeXt-B-1k-ModelNet40.pth` and the like): canvas, image tower and classifier as one encoder.

The file holds `{"state_dict": ...}` with `enc.*` and `base_model.*`, with `module.` in front where several GPUs trained
it. ViT, DeiT, ConvNeXt and ResNet are read; their sizes are read from the shapes. The published sampler's gap at the
origin and ImageNet's statistics are what the weights were trained with, so they are always set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmtune.checkpoint.foreign._blip2 import common, ratio
from mmtune.checkpoint.foreign.base import (
    Exported,
    Foreign,
    ForeignConfig,
    Imported,
    Opened,
    Part,
    Piece,
    ReadBack,
    Role,
    Source,
    unlike,
)
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError

FILE = "model_best.pth"
PART = "encoder"
WRAP = "module."
BASE = "base_model."
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SKIP = 1e-3
"""Squared distance from the origin up to which the published sampler passes points over."""
DATA: dict[str, dict[str, Any]] = {
    "modelnet40": {"points": 4096, "object": 224, "normalise": True},
    "scanobjectnn": {"points": 2048, "object": 192, "normalise": False},
}
RESNETS = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
TABLE = KeyMap(
    [Rule("enc.{rest*}", f"{PART}:draw.{{rest*}}"), Rule(f"{BASE}{{rest*}}", f"{PART}:image.tower.{{rest*}}")]
)


class Config(ForeignConfig):
    data: Literal["modelnet40", "scanobjectnn"] = "modelnet40"
    """What the weights were trained on: it settles the number of points, the size of the object in the picture, and
    whether clouds are normalised."""
    object: int | None = Field(default=None, ge=8)
    """Side in pixels of the square that the object is drawn in; null goes by `data`."""
    classifier: bool = True
    """Bring in the classifier too, which a language model has no use for, so that the file can be written again."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of a ViT, which the file does not tell; null is one for 64 channels, as published."""


class P2P(Foreign):
    """See the module."""

    Config = Config
    config: Config
    about = "P2P's point cloud classifiers, as the encoder p2p_points"
    imports = "encoder"
    roles = (Role("weights", "a published .pth, or the same as safetensors"),)

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for a file that is none, or a backbone of another family."""
        source, config = sources["weights"], self.config
        tensors = {n.removeprefix(WRAP): t for n, t in source.tensors(inside=("state_dict",)).items()}
        tower, head = _tower(tensors, config.heads)
        if config.classifier:
            tower["classes"] = common(tensors, re.escape(f"{BASE}{head}.weight"), 0, 40)
        else:
            tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{BASE}{head}.")}
        section: dict[str, Any] = {
            "name": "p2p_points",
            **DATA[config.data],
            "skip_origin": SKIP,
            "inner_width": common(tensors, r"enc\.input_trans\.(weight|bias)", 0, 8),
            "point_width": common(tensors, r"enc\.(graph_layer|proj_layer|img_block)\..*", 0, 64),
            "image": {"name": "timm_vit", **tower, **IMAGENET},
        }
        if config.object is not None:
            section["object"] = config.object
        facts = {"published as": "P2P, MIT", "trained on": config.data, "sampling": f"passes over |p|^2 <= {SKIP:g}"}
        return Imported(
            recipe={"encoder": section},
            pieces=[Piece(str(source), TABLE, tensors)],
            parts={PART: Part(holds="")},
            facts=facts,
        )

    def write(self, run: Opened) -> Exported:
        """The canvas and the tower under their published names. Raises CheckpointError for a run without such an
        encoder, or with an image encoder that is not timm's."""
        branches = run.recipe.model.branches
        name = next((name for name, branch in branches.items() if branch.encoder.name == "p2p_points"), None)
        if name is None:
            raise CheckpointError("a run without the encoder p2p_points", "a branch with it")
        tensors = run.tensors({PART: f"branches.{name}.encoder"})
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{PART}:")}
        return Exported({FILE: {"state_dict": TABLE.out(own)}})

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        branches = run.recipe.model.branches
        branch = next(name for name, one in branches.items() if one.encoder.name == "p2p_points")
        encoder = branches[branch].encoder
        tower = run.model.branches[branch].encoder.image.tower
        alike = {
            name: sum(getattr(encoder, key) == one[key] for key in ("points", "normalise"))
            for name, one in DATA.items()
        }
        options = {
            "data": max(alike, key=lambda name: alike[name]),
            "object": encoder.object,
            "heads": getattr(encoder.image, "args", {}).get("num_heads"),
            "classifier": any(name.startswith(("head.fc.", "head.weight", "fc.")) for name in tower.state_dict()),
        }
        return [ReadBack({"weights": Source("weights", folder / FILE, scratch)}, options, {branch: branch})]


def _tower(tensors: Mapping[str, Tensor], heads: int | None) -> tuple[dict[str, Any], str]:
    """The settings of `timm_vit` that build the tower whose weights these are, and the name of its classifier.

    Sizes are those of most tensors, else the published ones, so that a missing or misshapen tensor is reported by
    name, with all others. Raises CheckpointError for a family that is not read.
    """
    names = {name.removeprefix(BASE) for name in tensors if name.startswith(BASE)}
    if any(name.startswith("stages.0.blocks.0.conv_dw.") for name in names):
        depths = [_count(names, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4)]
        dims = [common(tensors, rf"base_model\.stages\.{i}\.blocks\.\d+\.norm\..+", 0, 96 * 2**i) for i in range(4)]
        return {"model": "convnext_tiny", "args": {"depths": depths, "dims": dims}, "norm": False}, "head.fc"
    if any(name.startswith("layer1.0.conv1.") for name in names):
        depths = [_count(names, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)]
        if tuple(depths) not in RESNETS:
            raise unlike("the ResNet of the file", depths, f"one of {', '.join(RESNETS.values())}")
        return {"model": RESNETS[tuple(depths)], "norm": False}, "fc"
    if any(name.startswith(("layers.0.", "stages.0.")) for name in names):
        raise unlike("the backbone of the file", min(names), "a ViT, DeiT, ConvNeXt or ResNet")
    block = r"base_model\.blocks\.\d+\."
    width = common(tensors, rf"{block}norm\d\..+", 0, 768)
    patch = common(tensors, r"base_model\.patch_embed\.proj\.weight", 3, 16)
    positions = common(tensors, r"base_model\.pos_embed", 1, 197)
    args = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": _count(names, r"blocks\.(\d+)\.") or 12,
        "num_heads": heads or max(1, width // 64),
        "mlp_ratio": ratio(common(tensors, rf"{block}mlp\.fc1\.bias", 0, 4 * width), width),
    }
    return {"model": "vit_tiny_patch16_224", "args": args, "size": math.isqrt(max(1, positions - 1)) * patch}, "head"


def _count(names: set[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds at the beginning of a name."""
    return max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1) + 1
