"""The released adapter in tiny: two prompts in the upper two layers, a gate in every one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.checkpoint.foreign import meta
from tests.checkpoint.foreign.made import Made

LENGTH = 2


def tensors() -> dict[str, torch.Tensor]:
    made = {"adapter_query.weight": torch.randn((meta.LAYERS - 1) * LENGTH, meta.DIM)}
    return made | {f"layers.{i}.attention.gate": torch.randn(1, meta.HEADS, 1, 1) for i in range(meta.LAYERS)}


def make(path: Path) -> Made:
    llm = meta.transformers_folder(path / "llama")
    file = path / "adapter.safetensors"  # published pickled, which takes another process to read
    save_file(tensors(), file)
    written = f"llama_adapter_len{LENGTH}_layer{meta.LAYERS - 1}_release.pth"
    return Made({"llm": llm, "adapter": file}, file, options=[f"length={LENGTH}"], written=written)
