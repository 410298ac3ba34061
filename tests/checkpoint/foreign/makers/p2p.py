"""A tiny P2P classifier: canvas and ViT, pickled as its trainer leaves it after several GPUs."""

from __future__ import annotations

from pathlib import Path

import timm
import torch

from mmtune.layers.clouds import Canvas
from tests.checkpoint.foreign.made import Made
from tests.encoders.tiny import TIMM


def make(folder: Path) -> Made:
    tower = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, img_size=24, **TIMM)
    parts = {"enc": Canvas(4, 4, 8, 24), "base_model": tower}
    tensors = {f"{head}.{name}": t.clone() for head, part in parts.items() for name, t in part.state_dict().items()}
    tensors = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in tensors.items()}
    tensors |= {n: t.abs() for n, t in tensors.items() if n.endswith("running_var")}  # no variance is below zero
    path = folder / "ViT-T-1k-ModelNet40.pth"
    torch.save({"epoch": 3, "state_dict": tensors, "best_acc_cls": 91.5}, path)
    options = [f"heads={TIMM['num_heads']}", "object=20"]
    changes = ["encoder.points=64", "encoder.near=4", "encoder.views=front"]
    return Made({"weights": path}, path, options, changes, inside=("state_dict",), written="model_best.pth")
