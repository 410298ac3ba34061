"""A tiny `eva_vit_g.pth`, with the block and the head that BLIP-2 leaves out."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkpoint.foreign.made import Made
from tests.checkpoint.foreign.makers import _eye


def make(folder: Path) -> Made:
    shapes = _eye.tower(**{**_eye.TINY, "blocks": 3}) | _eye.norm("norm", 16) | _eye.linear("head", 16, 10)
    path = folder / "eva_vit_g.pth"
    torch.save(_eye.draw(shapes), path)
    return Made({"eva": path}, path, ["blocks=2", "vit_heads=2"], lossy=("blocks.2.", "norm.", "head."))
