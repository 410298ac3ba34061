"""BLIP-2: pictures through the tower, its norm and the Q-Former, in both layouts of its files."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from vectors._base import Got, Vector
from vectors.video_llama import keep, states

from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.foreign.blip2 import Blip2, Config
from mmtune.encoders._weights import fill
from mmtune.encoders.blip2_eva import Blip2Eva
from mmtune.encoders.blip2_eva import Config as EyeConfig


def image_path(vector: Vector) -> Iterator[Got]:
    config = vector.facts["config"]
    options = Config(
        blocks=config["vit"]["depth"],
        vit_heads=config["vit"]["num_heads"],
        qformer_heads=config["qformer"]["num_attention_heads"],
    )
    got = Blip2(options).read({"blip2": Source.memory("blip2", vector.weights)})
    eye = Blip2Eva(EyeConfig.model_validate(got.recipe["encoder"]))
    fill(eye.tower, got.part("encoder"), str(vector.path))
    features, embeds, seen = keep(eye.tower.vit), keep(eye.tower.ln_vision), states(eye.tower.qformer)
    image = vector.inputs["image"]
    out = eye(image[:, None], torch.ones(len(image), 1, dtype=torch.bool)).tokens[:, 0]
    yield Got("vit_features", features[-1])
    yield Got("image_embeds", embeds[-1])
    for name, value in seen().items():
        ours = "query_embeddings" if name == "embeddings" else f"qformer_{name}"
        if ours in vector.outputs:
            yield Got(ours, value)
    yield Got("qformer_output", out)


CASES = {"blip2/image_path": image_path}
