"""Video-LLaMA: frames, the eye, both Q-Formers over frames and sound clips, and each branch as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vectors._base import Got, Vector

from mmtune.checkpoint.foreign import _blip2, _imagebind, video_llama
from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.connectors.video_qformer import Config as QueriesConfig
from mmtune.connectors.video_qformer import VideoQFormer
from mmtune.encoders._weights import fill
from mmtune.encoders.blip2_eva import Blip2Eva
from mmtune.encoders.blip2_eva import Config as EyeConfig
from mmtune.encoders.imagebind_audio import Config as EarConfig
from mmtune.encoders.imagebind_audio import ImagebindAudio
from mmtune.layers.qformer import QFormer
from mmtune.media._frames import format_times
from mmtune.media._frames import video_llama as chosen
from mmtune.types import Features, FeatureShape, Media

ORIGIN = "the vector"


def keep(module: nn.Module) -> list[Tensor]:
    """The list that every later output of a module is appended to."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _, args, out: seen.append(out))
    return seen


def states(qformer: QFormer) -> Callable[[], dict[str, Tensor]]:
    """What a Q-Former passes on: asked after its forward, `embeddings` and `layer_N` by name."""
    first = keep(qformer.embeddings)
    layers = [keep(layer) for layer in qformer.encoder.layer]
    return lambda: {"embeddings": first[-1]} | {f"layer_{n}": seen[-1] for n, seen in enumerate(layers)}


def put(module: nn.Module, rules: list[Rule], weights: Mapping[str, Tensor], ignore: list[str] | None = None) -> None:
    """Fill a module through a table, strictly."""
    fill(module, KeyMap(rules, ignore or []).into(weights), ORIGIN)


def chosen_names(weights: Mapping[str, Tensor], *starts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.startswith(starts)}


def frame_sampling(vector: Vector) -> Iterator[Got]:
    for row in vector.facts["table"]:
        name = f"{row['n_frms']} of {row['total_frames']} at {row['fps']}"
        indices = chosen(row["total_frames"], row["n_frms"])
        yield Got(f"indices {name}", indices, row["indices"])
        yield Got(f"seconds {name}", format_times(index / row["fps"] for index in indices), row["seconds"])


def frame_transform(vector: Vector) -> Iterator[Got]:
    config, frames = vector.facts["config"], vector.inputs["frames"].permute(0, 3, 1, 2)
    eye = Blip2Eva(tiny(trained_size=14, mean=tuple(config["mean"]), std=tuple(config["std"])))
    eye.pixels = replace(eye.pixels, size=tuple(frames.shape[-2:]))  # as decoded, which may be no square
    yield Got("video", eye.prepare(Media("video", frames.contiguous())).transpose(0, 1))


def tiny(**settings: Any) -> EyeConfig:
    """An eye whose tower does not matter."""
    sizes = {"vit_width": 2, "vit_depth": 1, "vit_heads": 1, "vit_hidden": 2, "tokens": "all"}
    return EyeConfig.model_validate({**sizes, **settings})


def importer(config: Mapping[str, Any]) -> _blip2.EyeConfig:
    """The options that the importers need for sizes which tensors do not tell."""
    found = {"qformer_heads": config["qformer"]["num_attention_heads"]} if "qformer" in config else {}
    if "vit" in config:
        found |= {"blocks": config["vit"]["depth"], "vit_heads": config["vit"]["num_heads"]}
    return _blip2.EyeConfig.model_validate(found)


def eva_vit(vector: Vector) -> Iterator[Got]:
    options, weights = importer(vector.facts["config"]), vector.weights
    sizes = _blip2.tower_sizes(weights, "visual_encoder.", options)
    eye = Blip2Eva(EyeConfig.model_validate({"tokens": "all", **sizes}))
    rules = [*_blip2.tower("visual_encoder.", ""), *_blip2.norm("")]
    put(eye.tower, rules, weights, _blip2.unused_tower(weights, "visual_encoder.", options.blocks))
    image, vit = vector.inputs["image"], eye.tower.vit
    features, blocks = keep(vit), [keep(block) for block in vit.blocks]
    out = eye(image[:, None], torch.ones(len(image), 1, dtype=torch.bool)).tokens[:, 0]
    yield Got("tokens", vit.embed(image))
    for n, seen in enumerate(blocks):
        if f"block_{n}" in vector.outputs:
            yield Got(f"block_{n}", seen[-1])
    yield Got("features", features[-1])
    yield Got("ln_vision", out)
    table = vector.inputs["pos_embed_ckpt"]
    trained = round((table.shape[1] - 1) ** 0.5) * sizes["patch"]
    other = {**sizes, "trained_size": trained, "size": sizes["trained_size"]}
    yield Got("pos_embed_resized", Blip2Eva(EyeConfig.model_validate({"tokens": "all", **other})).resized(table))


def image_qformer(vector: Vector) -> Iterator[Got]:
    heads, embeds = vector.facts["config"]["qformer"]["num_attention_heads"], vector.inputs["image_embeds"]
    sizes = _blip2.qformer_sizes(vector.weights)
    width, depth, every = sizes["width"], sizes["depth"], sizes["cross_every"]
    qformer = QFormer(width, depth, heads, sizes["hidden"], embeds.shape[-1], every, dropout=0.0)
    module = nn.Module()
    module.qformer, module.query_tokens = qformer, nn.Parameter(torch.zeros(1, sizes["queries"], width))
    put(module, _blip2.queries(""), vector.weights, [_blip2.counter()])
    seen = states(qformer)
    out = qformer(module.query_tokens, embeds)
    yield from (Got(name, value) for name, value in seen().items() if name in vector.outputs)
    yield Got("last_hidden_state", out)


def queries(which: str, weights: Mapping[str, Tensor], heads: int, shape: FeatureShape) -> VideoQFormer:
    """The connector of a branch, filled through the importer's table."""
    sizes = video_llama.connector_sizes(which, weights, heads)
    width = weights[f"{video_llama.PROJECTIONS[which]}.weight"].shape[0]
    made = VideoQFormer(QueriesConfig.model_validate(sizes), shape, width).eval()
    put(made, video_llama.connector(which, ""), weights, list(video_llama.BUFFERS))
    return made


def over_frames(which: str, entry: str, memory: str, vector: Vector) -> Iterator[Got]:
    """A connector alone; inputs [B,F,N,E] or [B,F,E]."""
    given = vector.inputs[entry]
    given = given if given.ndim == 4 else given[:, :, None]
    frames = torch.ones(given.shape[:2], dtype=torch.bool)
    shape = FeatureShape(width=given.shape[3], tokens=given.shape[2], grid=None, frames=given.shape[1])
    heads = vector.facts["config"]["qformer"]["num_attention_heads"]
    made = queries(which, vector.weights, heads, shape)
    seen = states(made.qformer)
    features = Features(given, frames, None)
    out = made(features)
    yield Got(memory, made.memory(features)[0])
    last = f"layer_{len(made.qformer.encoder.layer) - 1}"
    for name, value in seen().items():
        if name in vector.outputs:
            yield Got(name, value)
        if name == last:
            yield Got("last_hidden_state", value)
    yield Got("llm_tokens", out.tokens)


def full_video(vector: Vector) -> Iterator[Got]:
    config, weights = vector.facts["config"], vector.weights
    options = importer(config)
    trained = chosen_names(weights, "video_", "llama_proj.")
    base = {name: tensor for name, tensor in weights.items() if name not in trained}
    sizes, pieces = _blip2.eye(Source.memory(ORIGIN, base), None, "eye", options)
    eye = Blip2Eva(EyeConfig.model_validate(sizes))
    tensors = {name.partition(":")[2]: t for piece in pieces for name, t in piece.table.into(piece.tensors).items()}
    fill(eye.tower, tensors, ORIGIN)
    video = vector.inputs["video"].transpose(1, 2)
    frames = torch.ones(video.shape[:2], dtype=torch.bool)
    embeds, of_image = keep(eye.tower.ln_vision), keep(eye.tower)
    features = eye(video, frames)
    shape = FeatureShape(width=eye.width, tokens=eye.tokens_per_frame, grid=None, frames=video.shape[1])
    made = queries("sight", trained, options.qformer_heads, shape)
    last = keep(made.qformer)
    out = made(features)
    yield Got("image_embeds", embeds[-1])
    yield Got("image_qformer", of_image[-1])
    yield Got("frame_tokens", made.memory(features)[0])
    yield Got("video_qformer", last[-1])
    yield Got("llm_tokens", out.tokens)


def full_audio(vector: Vector) -> Iterator[Got]:
    config, weights = vector.facts["config"], vector.weights
    sizes, theirs = config["imagebind"], "audio_encoder."
    own = {name: tensor for name, tensor in weights.items() if name.startswith(theirs)}
    section = _imagebind.encoder(
        own,
        "audio",
        theirs,
        heads=sizes["audio_num_heads"],
        mels=sizes["audio_num_mel_bins"],
        length=sizes["audio_target_len"],
        stride=sizes["audio_stride"],
    )
    mel = vector.inputs["mel"]
    ear = ImagebindAudio(EarConfig.model_validate({**section, "frames": mel.shape[1]}))
    put(ear, _imagebind.rules("audio", "", theirs), own)
    frames = torch.ones(mel.shape[:2], dtype=torch.bool)
    features = ear(mel, frames)
    trained = {name: tensor for name, tensor in weights.items() if name not in own}
    made = queries("sound", trained, config["qformer"]["num_attention_heads"], ear.shape)
    last = keep(made.qformer)
    out = made(features)
    yield Got("clip_embeddings", features.tokens[:, :, 0])
    yield Got("clip_tokens", made.memory(features)[0])
    yield Got("audio_qformer", last[-1])
    yield Got("llm_tokens", out.tokens)


CASES = {
    "video_llama/frame_sampling": frame_sampling,
    "video_llama/frame_transform": frame_transform,
    "video_llama/eva_vit": eva_vit,
    "video_llama/image_qformer": image_qformer,
    "video_llama/video_qformer": lambda vector: over_frames("sight", "frame_features", "frame_tokens", vector),
    "video_llama/audio_qformer": lambda vector: over_frames("sound", "clip_embeddings", "clip_tokens", vector),
    "video_llama/full_video": full_video,
    "video_llama/full_audio": full_audio,
}
