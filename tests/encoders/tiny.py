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


TIMM = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}


def timm_folder(folder: Path, classes: int = 5) -> Path:
    """A tiny ViT with random weights and a classifier, in the layout that timm pushes to a hub."""
    import timm

    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    made = timm.create_model(name, pretrained=False, num_classes=classes, img_size=24, **TIMM)
    folder.mkdir(parents=True, exist_ok=True)
    published = {"input_size": [3, 24, 24], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0, "classifier": "head"}
    tree = {"architecture": name, "num_classes": classes, "pretrained_cfg": published}
    (folder / "config.json").write_text(json.dumps(tree | {"model_args": {"img_size": 24, **TIMM}}))
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, folder / "model.safetensors")
    return folder


def p2p(folder: Path) -> dict:
    """A small canvas in front of a tiny ViT."""
    image = {"name": "timm_vit", "weights": str(timm_folder(folder))}
    sizes = {"points": 64, "near": 4, "inner_width": 4, "point_width": 8}
    return {"image": image, "views": [[1.0, -0.5]], "object": 20, **sizes}


IMAGEBIND = {"tower_width": 16, "depth": 2, "heads": 2, "out": 12}
SOUND = {**IMAGEBIND, "patch": 4, "stride": 3, "mels": 16, "length": 20, "clip_seconds": 0.2}
SIGHT = {**IMAGEBIND, "patch": 8, "size": 24}


def imagebind_folder(folder: Path, name: str, sizes: dict) -> dict:
    """A tiny ImageBind tower with random weights in our layout, and the settings that fit it."""
    from mmtune import registry

    made = registry.find("encoders", name)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    drawn = {n: 0.3 * torch.randn(t.shape) for n, t in made(made.Config(**sizes)).state_dict().items()}
    save_file(drawn, folder / "model.safetensors")
    return {"weights": str(folder), **sizes}


def sound_folder(folder: Path, kind: str = "ast") -> Path:
    """A transformers folder with random weights: a whole AST classifier, Whisper or CLAP that hears 0.4 seconds."""
    import transformers as t

    torch.manual_seed(0)
    if kind == "ast":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        sizes |= {"num_mel_bins": 32, "max_length": 40, "patch_size": 16, "frequency_stride": 16, "time_stride": 8}
        model = t.ASTForAudioClassification(t.ASTConfig(**sizes, num_labels=3))
        heard = t.ASTFeatureExtractor(num_mel_bins=32, max_length=40)
    elif kind == "whisper":
        sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
        sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 60}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        more = {"max_source_positions": 50, "num_mel_bins": 16, "begin_suppress_tokens": None, "suppress_tokens": None}
        model = t.WhisperForConditionalGeneration(t.WhisperConfig(**sizes, **tokens, **more))
        heard = t.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    else:
        sound = {"hidden_size": 32, "patch_embeds_hidden_size": 16, "num_mel_bins": 32, "spec_size": 64}
        sound |= {"depths": [1, 1], "num_attention_heads": [2, 2], "num_hidden_layers": 2, "window_size": 4}
        text = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text |= {"intermediate_size": 16, "max_position_embeddings": 20}
        model = t.ClapModel(t.ClapConfig(audio_config=sound, text_config=text, projection_dim=8))
        heard = t.ClapFeatureExtractor(
            feature_size=32, sampling_rate=16000, hop_length=160, max_length_s=1, fft_window_size=512,
            frequency_max=8000, truncation="rand_trunc",
        )  # fmt: skip
    model.save_pretrained(folder)
    heard.save_pretrained(folder)
    return folder


TINY: dict[str, Callable[[Path], dict]] = {
    "anyres": lambda folder: {
        "encoder": {"name": "hf_vision", "weights": str(hf_folder(folder))},
        "grids": [[24, 48], [48, 24], [48, 48]],
    },
    "blip2_eva": blip2_folder,
    "clip": lambda folder: {"weights": str(clip_folder(folder)), "frames": 4},
    "hf_audio": lambda folder: {"weights": str(sound_folder(folder)), "frames": 4},
    "hf_vision": lambda folder: {"weights": str(hf_folder(folder)), "frames": 4},
    "p2p_points": p2p,
    "timm_vit": lambda folder: {"weights": str(timm_folder(folder)), "frames": 4},
    "imagebind_audio": lambda folder: imagebind_folder(folder, "imagebind_audio", SOUND),
    "imagebind_vision": lambda folder: imagebind_folder(folder, "imagebind_vision", SIGHT),
}
