"""A tiny BLIP-2: a file of stage 2 with its projection, and the tower beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoint.foreign.made import Made
from tests.checkpoint.foreign.makers import _eye

QFORMER = {"queries": 3, "width": 16, "hidden": 64, "depth": 3, "every": 2, "memory": 16}
OPTIONS = ["blocks=2", "vit_heads=2", "qformer_heads=2"]


def tensors() -> dict[str, Tensor]:
    """What BLIP-2's own file holds under "model"."""
    shapes = _eye.qformer("", **QFORMER) | _eye.norm("ln_vision", 16) | _eye.linear("t5_proj", 16, 20)
    return _eye.draw(shapes) | _eye.counter()


def make(folder: Path) -> Made:
    paths = {"blip2": folder / "blip2_pretrained.pth", "eva": folder / "eva_vit_g.safetensors"}
    torch.save({"model": tensors(), "epoch": 3}, paths["blip2"])
    save_file(_eye.draw(_eye.tower(**_eye.TINY)), paths["eva"])
    return Made(paths, paths["blip2"], OPTIONS, inside=("model",), lossy=("t5_proj.",))
