"""A tiny Llama with pickled weights, as Vicuna was published."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.checkpoint.foreign.made import Made
from tests.llm.tiny import folder


def make(path: Path) -> Made:
    path = folder(path / "llm")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return Made({"folder": path}, path / "pytorch_model.bin", config=path / "config.json", export=None)
