"""P2P: projection, point features, canvas, picture, classifier, rotations, farthest point sampling."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.foreign.p2p import P2P
from mmtune.encoders._weights import fill
from mmtune.encoders.p2p_points import Config, P2PPoints
from mmtune.layers import clouds

from ._base import Got, Vector

ORIGIN = 1e-3
"""What the published sampler passes over."""
SMOOTHING = 0.2
HEAD = "base_model.head."


def p2p(vector: Vector) -> Iterator[Got]:
    facts, given, weights = vector.facts["config"], vector.inputs, vector.weights
    linear = facts.get("head_type", "linear") == "linear"
    # a perceptron as classifier is none that an image model has: it stands behind the vector in front of it
    head = {n.partition(HEAD)[2]: t for n, t in weights.items() if HEAD in n}
    options = P2P.Config(object=facts["obj_size"], heads=facts["vit"]["num_heads"], classifier=linear)
    got = P2P(options).read({"weights": Source.memory("weights", weights)})
    tree = got.recipe["encoder"]
    tree["near"], tree["points"] = facts["local_size"], facts["n_points"]
    tree["image"] |= {"mean": facts["imagenet_default_mean"], "std": facts["imagenet_default_std"]}
    tree["image"]["tokens"] = "logits" if linear else "pooled"
    encoder = P2PPoints(Config.model_validate(tree))
    fill(encoder, got.part("encoder"), str(vector.path))

    seen, points, side = given["pc"], given["original_pc"], encoder.side
    found, draw = clouds.project(seen, side), encoder.draw
    yield Got("grid_size", found.size)
    yield Got("cell", found.cell)
    yield Got("center", found.centre)
    yield Got("offset", found.offset)
    yield Got("pixel_index", found.index)
    features = draw.features(points)
    canvas = draw.spread(features, found.index, side)
    block, bright = draw.coloured(canvas)
    yield Got("point_features", features)
    yield Got("canvas", canvas)
    yield Got("img_feat", block)
    yield Got("img_sigmoid", bright)
    x = torch.cat([points, seen], -1)[:, None]  # [M,1,P,6]
    yield Got("img", encoder.pictures(x[:, 0]))
    out = encoder(x, torch.ones(x.shape[:2], dtype=torch.bool)).tokens[:, 0, 0]
    logits = out if linear else _head(head)(out)
    yield Got("logits", logits)

    labels = given["labels"]
    true = F.log_softmax(logits, -1).gather(1, labels[:, None])[:, 0]
    others = F.log_softmax(logits, -1).sum(-1) - true
    smoothed = -((1 - SMOOTHING) * true + SMOOTHING / (logits.shape[1] - 1) * others).mean()
    yield Got("loss_smoothed", smoothed[None])
    yield Got("loss_plain", F.cross_entropy(logits, labels)[None])
    yield Got("accuracy_percent", (logits.argmax(-1) == labels).float().mean()[None] * 100)

    turns = clouds.rotations(given["angles"].double()).float()
    yield Got("rotation_matrices", turns)
    yield Got("rotated", points @ turns.transpose(1, 2))
    for name, views in (("validation", clouds.VALIDATION), ("test", clouds.TEST)):
        angles = clouds.radians(views)
        yield Got(f"{name}_angles", angles.float())
        yield Got(f"{name}_matrices", clouds.rotations(angles).float())
    whole = given["fps_points"]
    count = vector.outputs["fps_index"].shape[1]
    index = torch.stack([torch.from_numpy(clouds.farthest(one.numpy(), count, ORIGIN)) for one in whole])
    yield Got("fps_index", index)
    yield Got("fps_points", torch.stack([one[i] for one, i in zip(whole, index, strict=True)]))


def _head(tensors: dict[str, Tensor]) -> nn.Sequential:
    """The published perceptron head: linear layers, each but the last followed by batch norm and ReLU."""
    names = sorted({n.rpartition(".")[0] for n in tensors}, key=lambda n: int(n.rpartition(".")[2] or 0))
    layers: list[nn.Module] = []
    for name in names:
        own = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.rpartition(".")[0] == name}
        if "running_mean" in own:
            layers += [nn.BatchNorm1d(len(own["weight"])), nn.ReLU()]
            layers[-2].load_state_dict(own)
        else:
            layers.append(nn.Linear(*reversed(own["weight"].shape)))
            layers[-1].load_state_dict(own)
    return nn.Sequential(*layers).eval()


CASES = {"P2P point-to-pixel prompting": p2p}
