"""Questions by which two models are compared: one synthetic item of each kind that the model takes, and text.

Pictures are neither square nor of the encoder's size, with all colours apart, so that resizing, cropping, order of
channels and statistics all show. Answers are logits, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtune.collate import collate
from mmtune.items import encode_item, use_features
from mmtune.model import MultimodalModel
from mmtune.types import IGNORE, Example, Kind, Media, Slot

WORDS = 6
"""Tokens of text before an item, and as many after it."""
FRAMES = 3
"""Most frames of a video."""
CLIPS = 1.5
"""Length of a sound, in clips of the encoder: so that several of them overlap."""
POINTS = 300


@dataclass
class Question:
    """One question."""

    branch: str | None
    """None for text alone."""
    kind: Kind | None
    media: Media | None
    words: tuple[Tensor, Tensor]
    """Ids before and after the item."""


@dataclass
class Answer:
    """The answer of a model to a question."""

    item: Tensor | None
    """The input of the encoder, or features where the comparison leaves the encoder out."""
    example: Example
    logits: Tensor
    """float32 [T,V]"""
    seen: Tensor | None = None
    """Tokens of the encoder [F,N,E], where it ran: fusion gates that are still zero hide them from the logits."""


def questions(model: MultimodalModel) -> list[Question]:
    """For each branch and kind that a model takes one item, and text alone."""
    generator = torch.Generator().manual_seed(0)
    words = _words(model, generator)
    found = [Question(None, None, None, words)]
    for name, branch in model.branches.items():
        found += [Question(name, kind, item(branch.encoder, kind), words) for kind in branch.kinds]
    return found


def item(encoder: Any, kind: Kind) -> Media:
    """A synthetic item, always the same for an encoder."""
    generator = torch.Generator().manual_seed(1)
    if kind in ("image", "video"):
        pixels = getattr(encoder, "pixels", None) or getattr(getattr(encoder, "inner", None), "pixels", None)
        side = max(8, min(800, max(pixels.size))) if pixels else 64
        count = 1 if kind == "image" else min(FRAMES, encoder.max_frames)
        coarse = torch.rand(count, 3, 5, 7, generator=generator)
        coarse[:, 0] *= 0.6
        size = (side * 5 // 4, side * 7 // 4)
        smooth = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
        times = torch.arange(count, dtype=torch.float64) if kind == "video" else None
        return Media(kind, (smooth * 255).round().to(torch.uint8), times=times, origin="a probe")
    if kind == "audio":
        rate = encoder.sampling("audio").rate
        seconds = CLIPS * getattr(encoder.config, "clip_seconds", 2.0)
        wave = 0.2 * torch.randn(2, int(rate * seconds), generator=generator) + 0.02
        return Media("audio", wave.clamp(-1, 1), rate=rate, origin="a probe")
    cloud = torch.rand(POINTS, 6, generator=generator)
    cloud[:, :3] = cloud[:, :3] * torch.tensor([1.0, 0.7, 0.4]) - 0.3
    return Media("points", cloud, origin="a probe", columns=("x", "y", "z", "red", "green", "blue"))


def _words(model: MultimodalModel, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    tokenizer = model.llm.tokenizer
    usual = torch.tensor([one for one in range(tokenizer.vocabulary) if one not in tokenizer.special_ids] or [0])
    ids = usual[torch.randint(len(usual), (2 * WORDS,), generator=generator)]
    return ids[:WORDS], ids[WORDS:]


def ask(model: MultimodalModel, question: Question, branch: str | None, apart: bool = False) -> Answer:
    """The answer of a model to a question.

    Args:
        branch: the branch that takes the item; its name may differ from model to model.
        apart: give the connector random features instead of running the encoder.
    """
    before, behind = question.words
    slots: tuple[Slot, ...] = ()
    media: dict[str, list[Tensor]] = {}
    given, num_tokens = None, 0
    if branch is not None:
        held = model.branches[branch]
        encoder = held.encoder
        given = _features(encoder) if apart else encoder.prepare(question.media)
        num_tokens = held.connector.num_tokens(given, encoder) if model.fusion.uses_placeholders else 0
        slots, media = (Slot(branch, len(before), num_tokens, 0),), {branch: [given]}
    elif model.fusion.default_image_branch is not None:
        default = model.fusion.default_image_branch
        slots, media = (Slot(default, 0, 0, 0),), {default: [model.branches[default].black_image()]}
    pad = model.llm.tokenizer.pad
    tokens = torch.cat([before, before.new_full((num_tokens,), pad), behind])
    example = Example("a probe", tokens, torch.full_like(tokens, IGNORE), slots, media)
    with torch.no_grad(), use_features(model, [], None, [branch] if branch and apart else []):
        batch = collate([[example]], multiple=1)
        seen = None
        if branch is not None and not apart:
            seen = model.branches[branch].encoder(batch.media[branch], batch.frame_mask[branch]).tokens[0].float()
        return Answer(given, example, model.llm.head(model(batch)[0]).float(), seen)


def features(encoder: Any, media: Media) -> tuple[Tensor, Tensor]:
    """(the input of an encoder, its tokens [F,N,E]) for an item."""
    given = encoder.prepare(media)
    return given, encode_item(encoder, given).float()


def _features(encoder: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (min(FRAMES, encoder.max_frames), encoder.tokens_per_frame, encoder.width)
    return torch.randn(shape, generator=generator)


def settings(section: Any) -> Iterator[tuple[str, Any]]:
    """The settings of a part as (dotted name, value), without paths and without settings of speed."""
    for key, value in section.items():
        if key in ELSEWHERE:
            continue
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", one) for inner, one in settings(value))
        else:
            yield key, value


ELSEWHERE = {"weights", "model", "revision", "chunk", "folder", "repo", "like", "attention", "dtype", "seed"}
