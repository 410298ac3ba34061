"""P2P's files of every family that is read; those that are not are refused by name."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from mmtune import config
from mmtune.checkpoint.foreign._blip2 import ratio
from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.foreign.p2p import P2P
from mmtune.encoders._weights import fill
from mmtune.encoders.p2p_points import Config, P2PPoints
from mmtune.errors import CheckpointError
from mmtune.layers.clouds import Canvas
from tests.encoders.tiny import TIMM


def published(name: str, wrap: str = "", **args) -> dict[str, Tensor]:
    """The names and shapes of a checkpoint on timm's tower."""
    with torch.device("meta"):
        parts = {"enc": Canvas(), "base_model": timm.create_model(name, pretrained=False, **args)}
    return {f"{wrap}{head}.{key}": t for head, part in parts.items() for key, t in part.state_dict().items()}


def read(tensors, **options):
    return P2P(P2P.Config(**options)).read({"weights": Source.memory("weights", tensors)})


FULL = {
    "deit_base_patch16_224": {"num_classes": 40},
    "vit_small_patch16_224": {"num_classes": 15},
    "convnext_base": {"num_classes": 40},
    "convnext_tiny": {"num_classes": 40},
    "resnet18": {"num_classes": 40},
    "resnet101": {"num_classes": 15},
}


@pytest.mark.parametrize(("name", "wrap"), [*((name, "") for name in FULL), ("resnet18", "module.")])
def test_full_size_names_and_shapes(name, wrap):
    """Every tensor of the file has its place, and every place its tensor."""
    tensors = published(name, wrap, **FULL[name])
    found = read(tensors)
    tree = found.recipe["encoder"]
    with torch.device("meta"):
        encoder = P2PPoints(config.validate(Config, tree))
    state = {name: tuple(t.shape) for name, t in encoder.state_dict().items()}
    assert {name: tuple(t.shape) for name, t in found.part("encoder").items()} == state
    back = found.pieces[0].table.out({f"encoder:{name}": t for name, t in encoder.state_dict().items()})
    assert {name.removeprefix(wrap) for name in tensors} == back.keys()
    assert tree["image"]["classes"] == FULL[name]["num_classes"]
    assert encoder.image.pixels.mean == (0.485, 0.456, 0.406)
    assert sum(p.numel() for p in encoder.draw.parameters()) == 83_683


def test_the_two_sets_of_data():
    tensors = published("resnet18", num_classes=40)
    shapes, scans = (read(tensors, data=data).recipe["encoder"] for data in ("modelnet40", "scanobjectnn"))
    assert (shapes["object"], shapes["points"], shapes["normalise"]) == (224, 4096, True)
    assert (scans["object"], scans["points"], scans["normalise"]) == (192, 2048, False)
    assert scans["skip_origin"] == 1e-3
    assert read(tensors, object=200).recipe["encoder"]["object"] == 200


def test_the_classifier_can_be_left():
    tensors = published("vit_tiny_patch16_224", num_classes=7, img_size=24, **TIMM)
    found = read(tensors, classifier=False, heads=3)
    assert "classes" not in found.recipe["encoder"]["image"]
    assert not any(".head." in name for name in found.part("encoder"))
    assert any(".head." in name for name in read(tensors, heads=3).part("encoder"))


def test_numbers_are_those_of_timm():
    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=24, **TIMM).eval()
    canvas = Canvas(4, 4, 8, 24).eval()
    tensors = {f"enc.{name}": t for name, t in canvas.state_dict().items()}
    tensors |= {f"base_model.{name}": t for name, t in tower.state_dict().items()}
    found = read(tensors, heads=3, object=20)
    tree = config.merge(found.recipe["encoder"], {"points": 64, "near": 4, "views": "front"})
    tree["image"]["tokens"] = "logits"
    encoder = P2PPoints(config.validate(Config, tree))
    fill(encoder, found.part("encoder"), "made")
    x = torch.randn(2, 1, 64, 6)
    with torch.no_grad():
        pictures = encoder.pictures(x[:, 0])
        got = encoder(x, torch.ones(2, 1, dtype=torch.bool)).tokens[:, 0, 0]
        torch.testing.assert_close(got, tower(pictures))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hornet"])
def test_other_families_are_refused_by_name(name):
    if name == "hornet":
        tensors = {"enc.img_layer.bias": torch.zeros(3), "base_model.stages.0.0.gamma1": torch.zeros(4)}
    else:
        tensors = published(name, num_classes=40)
    with pytest.raises(CheckpointError, match="ViT, DeiT, ConvNeXt or ResNet"):
        read(tensors)


@pytest.mark.parametrize(("width", "hidden"), [(11, 15), (22, 61), (64, 256), (768, 3072)])
def test_a_width_whose_quotient_rounds_down(width: int, hidden: int) -> None:
    """15 / 11 * 11 is 14.99...: a ratio that is cut to a whole number has to give the width of the file back."""
    assert int(width * ratio(hidden, width)) == hidden
    made = published("vit_tiny_patch16_224", embed_dim=width, depth=1, num_heads=1, mlp_ratio=1.0, num_classes=3)
    for name, shape in {"fc1.weight": (hidden, width), "fc1.bias": (hidden,), "fc2.weight": (width, hidden)}.items():
        made[f"base_model.blocks.0.mlp.{name}"] = torch.empty(shape, device="meta")
    got = read(made, heads=1)
    with torch.device("meta"):
        encoder = P2PPoints(config.validate(Config, got.recipe["encoder"]))
    assert encoder.image.tower.blocks[0].mlp.fc1.out_features == hidden
