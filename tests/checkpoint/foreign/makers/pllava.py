"""A tiny PLLaVA: LLaVA's parts, the language model under the names that peft gives it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.foreign.made import Made
from tests.checkpoint.foreign.makers.llava_hf import folder

RANK = 4
TUNED = ("q_proj", "v_proj")


def names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published spelling, with a random pair beside every tuned matrix."""
    found = {}
    for name, tensor in tensors.items():
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
        name = name.replace("language_model.", "language_model.base_model.model.")
        layer, _, _ = name.rpartition(".")
        if layer.endswith(TUNED) and name.startswith("language_model"):
            name = f"{layer}.base_layer.weight"
            found[f"{layer}.lora_A.default.weight"] = torch.randn(RANK, tensor.shape[1]) * 0.2
            found[f"{layer}.lora_B.default.weight"] = torch.randn(tensor.shape[0], RANK) * 0.2
        found[name] = tensor
    return found


def make(path: Path) -> Made:
    path, _ = folder(path / "pllava")
    file, hf_config = path / "model.safetensors", path / "config.json"
    save_file({name: t.contiguous() for name, t in names(load_file(file)).items()}, file, metadata={"format": "pt"})
    more = {"pooling_shape": [3, 2, 2], "num_frames": 3, "frame_shape": [3, 3], "pooling_method": "avg"}
    hf_config.write_text(json.dumps({**json.loads(hf_config.read_text()), **more}))
    return Made({"folder": path}, file, ["lora_alpha=2"], config=hf_config, export=["lora_alpha=2"])
