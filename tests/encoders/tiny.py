"""The smallest config of every encoder, with its folder of weights made on the spot.

An encoder without a line here fails the contract tests by name.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 24}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


def clip_folder(folder: Path, vision: dict | None = None, preprocess: dict | None = None) -> Path:
    """A folder as open_clip pushes it, text tower included, with random weights."""
    import open_clip

    torch.manual_seed(0)
    model_cfg = {"embed_dim": 20, "vision_cfg": {**VISION, **(vision or {})}, "text_cfg": TEXT}
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"model_cfg": model_cfg, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    model = open_clip.CLIP(**model_cfg)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def hf_folder(folder: Path, kind: str = "clip") -> Path:
    """A transformers folder with random weights: a whole CLIP or SigLIP, or a DINOv2."""
    import transformers as t

    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": 24, "patch_size": 8}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 32, "max_position_embeddings": 8}
    if kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    elif kind == "siglip":
        model = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
    else:
        model = t.Dinov2Model(t.Dinov2Config(**{k: v for k, v in vision.items() if k != "intermediate_size"}))
    model.save_pretrained(folder)
    size = {"height": 24, "width": 24} if kind == "siglip" else {"shortest_edge": 24}
    tree = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    if kind != "siglip":
        tree |= {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
    else:
        tree |= {"do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(tree))
    return folder


BLIP2 = {"trained_size": 16, "patch": 8, "vit_width": 12, "vit_depth": 2, "vit_heads": 2, "queries": 3}
BLIP2 |= {"vit_hidden": 20, "qformer_width": 8, "qformer_depth": 3, "qformer_heads": 2}


def blip2_folder(folder: Path) -> dict:
    """A tiny BLIP-2 eye with random weights in our layout, and the settings that fit it."""
    from mmtune.encoders.blip2_eva import Blip2Eva, Config

    made = Blip2Eva(Config(**BLIP2))
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    drawn = {name: 0.2 * torch.randn(t.shape) for name, t in made.tower.state_dict().items()}
    save_file(drawn, folder / "model.safetensors")
    return {"weights": str(folder), "frames": 4, **BLIP2}


TINY: dict[str, Callable[[Path], dict]] = {
    "blip2_eva": blip2_folder,
    "clip": lambda folder: {"weights": str(clip_folder(folder)), "frames": 4},
    "hf_vision": lambda folder: {"weights": str(hf_folder(folder)), "frames": 4},
}
