"""A ViT of open_clip as the same tower of transformers, for layouts that hold no other.

The two spell the same network in two ways: attention is one matrix here and three there, and the output matrix `proj`,
which no token that a connector gets has gone through, has no place.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from mmtune import registry
from mmtune.errors import CheckpointError

PLAIN = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
"""What is said of a ViT without special parts."""
_OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_CARRIED = ("layer", "layers", "tokens", "norm", "frames", "rule", "fps", "decode_side", "channels", "chunk")
_CARRIED += ("random_crop",)
"""Settings that both encoders have and mean alike."""


def as_transformers(encoder: Any) -> Any:
    """An encoder `clip` as an encoder `hf_vision` with the same weights and pixels.

    Raises:
        CheckpointError: a tower that is no plain ViT, or one whose tokens go through its output matrix.
    """
    hf_config = encoder.structure["vision_cfg"]
    if set(hf_config) - PLAIN or not isinstance(hf_config["layers"], int) or encoder.config.project:
        what = "project: true" if encoder.config.project else "a tower that is no plain ViT"
        raise CheckpointError(
            f"an encoder clip with {what}", "a ViT of CLIP's kind", "the layout has no word for it; keep the run folder"
        )
    width = hf_config["width"]
    settings = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": int(width * hf_config.get("mlp_ratio", 4.0)),
        "num_hidden_layers": hf_config["layers"],
        "num_attention_heads": width // hf_config.get("head_width", 64),
        "image_size": encoder.pixels.size[0],
        "patch_size": hf_config["patch_size"],
        "projection_dim": encoder.structure["embed_dim"],
        "hidden_act": "quick_gelu" if encoder.structure.get("quick_gelu") else "gelu",
    }
    chosen = registry.find("encoders", "hf_vision")
    carried = {name: getattr(encoder.config, name) for name in _CARRIED}
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        made = chosen(chosen.Config(model=folder, **carried))
    made.pixels = encoder.pixels
    made.tower.load_state_dict(spelled(encoder.visual.state_dict()), strict=True, assign=True)
    return made.to(next(encoder.parameters()).dtype)


def spelled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by open_clip's names -> by those of transformers."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _OUTSIDE:
            found[_OUTSIDE[name]] = tensor
        elif name.startswith("transformer.resblocks."):
            _, _, number, inner = name.split(".", 3)
            block, (module, _, kind) = f"encoder.layers.{number}", inner.rpartition(".")
            if module in _INSIDE:
                found[f"{block}.{_INSIDE[module]}.{kind}"] = tensor
            else:  # attn.in_proj_weight, attn.in_proj_bias: query, key and value in one
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{block}.self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"] = part.contiguous()
    return found
