"""The released multimodal adapter in tiny, of the kind with biases and low-rank pairs, over a tiny CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.checkpoint.foreign import meta
from tests.checkpoint.foreign.made import Made
from tests.encoders.tiny import clip_folder

QUERIES, WIDTH, DEPTH, HEADS, RANK = 3, 16, 2, 2, 4
MATRICES = {f"attention.w{x}": (meta.DIM, meta.DIM) for x in "qkvo"}
MATRICES |= {"feed_forward.w1": (meta.DIM, meta.HIDDEN), "feed_forward.w3": (meta.DIM, meta.HIDDEN)}
MATRICES["feed_forward.w2"] = meta.HIDDEN, meta.DIM


def linear(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(outputs, inputs) / inputs**0.5, f"{name}.bias": torch.randn(outputs)}


def norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width)}


def sight(features: int) -> dict[str, torch.Tensor]:
    """The visual projection behind tokens of width `features`."""
    made = {**linear("clip_proj", features, WIDTH), **norm("clip_proj_norm", WIDTH)}
    made["visual_query.weight"] = torch.randn(QUERIES, WIDTH)
    for i in range(DEPTH):
        block = f"visual_blocks.{i}."
        made |= {**norm(f"{block}norm1", WIDTH), **linear(f"{block}attn.qkv", WIDTH, 3 * WIDTH)}
        made |= {**linear(f"{block}attn.proj", WIDTH, WIDTH), **norm(f"{block}norm2", WIDTH)}
        made |= {**linear(f"{block}mlp.fc1", WIDTH, 4 * WIDTH), **linear(f"{block}mlp.fc2", 4 * WIDTH, WIDTH)}
    return made | {**linear("visual_proj", WIDTH, meta.DIM), **norm("visual_proj_norm", meta.DIM)}


def tensors(features: int, bias: bool = True, lora: bool = True) -> dict[str, torch.Tensor]:
    made = {**sight(features), "adapter_query.weight": torch.randn((meta.LAYERS - 1) * QUERIES, meta.DIM)}
    for i in range(meta.LAYERS):
        layer = f"llama.layers.{i}."
        made[f"{layer}attention.gate"] = torch.randn(1, meta.HEADS, 1, 1)
        if bias:
            made |= {f"{layer}{name}.weight": torch.rand(meta.DIM) + 0.5 for name in ("attention_norm", "ffn_norm")}
        if lora:
            made[f"{layer}attention.new_gate"] = torch.rand(1, 1, 1, 1) + 0.5
        for name, (inputs, outputs) in MATRICES.items():
            block, leaf = name.split(".")
            if bias and leaf not in ("wk", "wv"):
                made[f"{layer}{name}.bias"] = torch.randn(outputs)
            if lora:
                made[f"{layer}{block}.lora_{leaf}_l1.weight"] = torch.randn(RANK, inputs) / inputs**0.5
                made[f"{layer}{block}.lora_{leaf}_l2.weight"] = torch.randn(outputs, RANK) / 4
    return made | ({"llama.norm.weight": torch.rand(meta.DIM) + 0.5} if bias else {})


def make(path: Path, bias: bool = True, lora: bool = True) -> Made:
    llm, clip = meta.transformers_folder(path / "llama"), clip_folder(path / "clip")
    kind = "LORA-BIAS-7B" if lora else "BIAS-7B" if bias else "CAPTION-7B"
    file = path / f"{kind}.safetensors"  # published pickled, which takes another process to read
    save_file(tensors(features(clip), bias, lora), file)
    paths = {"llm": llm, "adapter": file, "clip": clip}
    return Made(paths, file, options=[f"heads={HEADS}"], inside=("model",), written=f"{kind}.pth")


def features(clip: Path) -> int:
    """Width of the tower's tokens after its output matrix."""
    return json.loads((clip / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
