"""The structure of some published image towers, so that a recipe can be shown before anything is fetched.

The trees are those of each repository's config.json and preprocessor_config.json, as far as they matter here. Loading
weights fetches the repository, and is strict about names and shapes.
"""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]


def _clip(width: int, layers: int, heads: int, patch: int, size: int, projection: int) -> tuple[Tree, Tree]:
    config = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    config |= {"num_attention_heads": heads, "patch_size": patch, "image_size": size, "projection_dim": projection}
    pixels = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}, "resample": 3}
    pixels |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    return {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", **config}, pixels


_KNOWN: dict[str, tuple[Tree, Tree]] = {
    "openai/clip-vit-base-patch16": _clip(768, 12, 12, 16, 224, 512),
    "openai/clip-vit-base-patch32": _clip(768, 12, 12, 32, 224, 512),
    "openai/clip-vit-large-patch14": _clip(1024, 24, 16, 14, 224, 768),
    "openai/clip-vit-large-patch14-336": _clip(1024, 24, 16, 14, 336, 768),
}


def trees(repo: str) -> tuple[Tree, Tree] | None:
    """(config, preprocessing) of a repository; none for one that is not known."""
    return _KNOWN.get(repo)
