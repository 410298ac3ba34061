"""ImageBind: both towers through the importer's table, and what comes before them; Video-LLaMA's spacing of clips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from vectors._base import Got, Vector

from mmtune import config, registry
from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.foreign.imagebind import Config, Imagebind
from mmtune.encoders import imagebind_audio, imagebind_vision
from mmtune.encoders._imagebind import Tower
from mmtune.encoders._weights import fill
from mmtune.media._resample import resample
from mmtune.types import Media


def _encoder(vector: Vector, **options: Any) -> Any:
    got = Imagebind(Config(**options)).read({"imagebind": Source.memory("imagebind", vector.weights)})
    found = registry.find("encoders", got.recipe["encoder"]["name"])
    made = found(config.validate(found.Config, got.recipe["encoder"]))
    fill(made, got.part("encoder"), str(vector.path))
    return made


def _trunk(vector: Vector, made: Any, x: Tensor) -> Iterator[Got]:
    """x [batch,clips,...]"""
    tower: Tower = made.tower
    rows = x.flatten(0, 1)
    if rows.ndim == 4 and isinstance(made, imagebind_vision.ImagebindVision):
        rows = rows[:, :, None].expand(-1, -1, 2, -1, -1)
    h = tower.embed(rows)
    yield Got("tokens", h)
    if tower.pre_norm is not None:
        yield Got("pre_transformer", tower.pre_norm(h))
    trunk = tower.encode(h)
    h = h if tower.pre_norm is None else tower.pre_norm(h)
    for i, block in enumerate(tower.blocks):
        h = block(h)
        if f"block_{i}" in vector.outputs:
            yield Got(f"block_{i}", h)
    yield Got("trunk", trunk)
    yield Got("cls_normed", tower.norm(trunk[:, 0]))
    yield Got("head", tower.vector(trunk))
    # What the encoder gives as a whole, not piece by piece.
    tokens = made(x, torch.ones(x.shape[:2], dtype=torch.bool)).tokens
    yield Got("embedding_per_clip", tokens[:, :, 0].flatten(0, 1))
    yield Got("embedding", tokens[:, :, 0].mean(dim=1))


def audio_trunk(vector: Vector) -> Iterator[Got]:
    facts = vector.facts["config"]
    made = _encoder(
        vector,
        heads=facts["audio_num_heads"],
        mels=facts["audio_num_mel_bins"],
        length=facts["audio_target_len"],
        stride=facts["audio_stride"],
    )
    mel = vector.inputs["mel"]
    yield from _trunk(vector, made, mel if mel.ndim == 5 else mel[:, None])


def vision_trunk(vector: Vector) -> Iterator[Got]:
    made = _encoder(vector, modality="vision", heads=vector.facts["config"]["vision_num_heads"])
    image = vector.inputs["image"].float()
    yield from _trunk(vector, made, image if image.ndim > 4 else image[:, None])


def _audio_preproc(vector: Vector, spacing: Literal["full", "short"]) -> Iterator[Got]:
    for name, case in vector.facts["cases"].items():
        p = case["params"]
        made = imagebind_audio.ImagebindAudio(
            imagebind_audio.Config(
                frames=p["clips_per_video"],
                spacing=spacing,
                centre="running",
                clip_seconds=p["clip_duration"],
                rate=p["sample_rate"],
                mels=p["num_mel_bins"],
                length=p["target_length"],
                mean=p["mean"],
                std=p["std"],
                tower_width=8,  # the tower takes no part
                depth=1,
                heads=1,
                patch=min(16, p["num_mel_bins"], p["target_length"]),
            )
        )
        wave = vector.inputs[f"{name}/pcm"].float() / 32768
        media = Media("audio", wave, rate=case["file_sample_rate"], origin=name)
        yield Got(f"{name}/clips", made.prepare(media)[None])
        if (want := vector.outputs.get(f"{name}/resampled_head")) is not None:
            head = resample(wave, case["file_sample_rate"], p["sample_rate"])
            yield Got(f"{name}/resampled_head", head[:, : want.shape[1]])
        samples = case["samples_after_resampling"]
        spans = imagebind_audio.clip_spans(samples, p["sample_rate"], p["clip_duration"], p["clips_per_video"], spacing)
        want_spans = list(zip(case["clip_start_sample"], case["clip_end_sample"], strict=True))
        yield Got(f"{name} (samples of the clips)", spans, want_spans)


def vision_preproc(vector: Vector) -> Iterator[Got]:
    facts = vector.facts["config"]
    made = imagebind_vision.ImagebindVision(
        imagebind_vision.Config(
            size=facts["size"],
            mean=facts["mean"],
            std=facts["std"],
            tower_width=8,  # the tower takes no part
            depth=1,
            heads=1,
            patch=min(14, facts["size"]),
        )
    )
    for name in vector.facts["cases"]:
        rgb = vector.inputs[f"{name}/rgb"].permute(2, 0, 1)[None].contiguous()
        yield Got(f"{name}/image", made.prepare(Media("image", rgb, origin=name)))


CASES = {
    "imagebind/audio_trunk": audio_trunk,
    "imagebind/vision_trunk": vision_trunk,
    "imagebind/vision_preproc": vision_preproc,
    "imagebind/audio_preproc": lambda vector: _audio_preproc(vector, "full"),
    "video_llama/audio_preproc": lambda vector: _audio_preproc(vector, "short"),
}
