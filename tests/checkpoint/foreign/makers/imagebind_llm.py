"""ImageBind-LLM in tiny: biases, norms and low-rank pairs, over an image tower."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from mmtune.checkpoint.foreign import _imagebind
from mmtune.checkpoint.keymap import KeyMap
from mmtune.encoders import imagebind_audio as audio
from mmtune.encoders import imagebind_vision as vision
from tests.checkpoint.foreign import meta
from tests.checkpoint.foreign.made import Made

WIDTH, HIDDEN, RANK = 20, 4 * meta.DIM, 5
SIZES = {f"attention.w{x}": (meta.DIM, meta.DIM) for x in "qkvo"}
SIZES |= {"feed_forward.w1": (meta.DIM, meta.HIDDEN), "feed_forward.w3": (meta.DIM, meta.HIDDEN)}
SIZES["feed_forward.w2"] = meta.HIDDEN, meta.DIM


def bridge(legacy: bool = False) -> dict[str, torch.Tensor]:
    made = {"image_bind_proj.weight": torch.randn(meta.DIM, WIDTH), "image_bind_proj.bias": torch.randn(meta.DIM)}
    for i in (1, 2, 3):
        made[f"image_bind_norm_{i}.weight"] = torch.rand(meta.DIM) + 0.5
        for n, shape in ((1, (HIDDEN, meta.DIM)), (2, (meta.DIM, HIDDEN)), (3, (HIDDEN, meta.DIM))):
            made[f"image_bind_f{n}_{i}.weight"] = torch.randn(shape) / meta.DIM
            if legacy:
                made[f"image_bind_f{n}_{i}.bias"] = torch.randn(shape[0])
        if legacy:
            made[f"image_bind_norm_{i}.bias"] = torch.randn(meta.DIM)
    return made


def tensors(tuned: bool = True, low: bool = True, legacy: bool = False) -> dict[str, torch.Tensor]:
    made = bridge(legacy) | {"prefix_query.weight": torch.randn(meta.LAYERS - 1, meta.DIM)}
    for i in range(meta.LAYERS):
        made[f"llama.layers.{i}.attention.gate"] = torch.randn(1, meta.HEADS, 1, 1)
        for name, (inputs, outputs) in SIZES.items():
            block, leaf = name.split(".")
            if tuned and leaf not in ("wk", "wv"):
                made[f"llama.layers.{i}.{name}.bias"] = torch.randn(outputs)
            if low:
                made[f"llama.layers.{i}.{block}.lora_{leaf}_l1.weight"] = torch.randn(RANK, inputs)
                made[f"llama.layers.{i}.{block}.lora_{leaf}_l2.weight"] = torch.randn(outputs, RANK)
        if tuned:
            for name in ("attention_norm", "ffn_norm"):
                made[f"llama.layers.{i}.{name}.weight"] = torch.rand(meta.DIM) + 0.5
    return made | ({"llama.norm.weight": torch.rand(meta.DIM) + 0.5} if tuned else {})


def make(path: Path) -> Made:
    llm = meta.transformers_folder(path / "llama")
    file, tower = path / "7B.pth", path / "imagebind_huge.safetensors"
    torch.save({"model": tensors()}, file)
    encoder = vision.ImagebindVision(vision.Config(size=28, patch=14, tower_width=16, depth=2, heads=2, out=WIDTH))
    ear = audio.ImagebindAudio(audio.Config(tower_width=24, depth=1, heads=12, out=WIDTH))
    towers = {}
    for sense, one in (("vision", encoder), ("audio", ear)):
        state = {f"x:{name}": tensor for name, tensor in one.state_dict().items()}
        towers |= KeyMap(_imagebind.rules(sense, "x:")).out(state)
    save_file(towers, tower)
    paths = {"llm": llm, "adapter": file, "imagebind": tower}
    return Made(paths, file, ["heads=2"], inside=("model",), written="imagebind_llm.pth")
