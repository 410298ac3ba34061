"""Checks of encoders: shapes, masked frames, preparing without chance, kinds refused, weights that are found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtune import model, random_state
from mmtune.encoders.base import Encoder, EncoderConfig
from mmtune.errors import MediaError, Reason
from mmtune.types import KINDS, Kind, Media


def make(cls: type[Encoder], settings: EncoderConfig) -> Encoder:
    """An encoder as a model has it."""
    return model.encoder("branches.test.encoder", settings).eval()


def media(kind: Kind, frames: int = 1, seed: int = 0) -> Media:
    """A small random item of a kind; a video's or sound's length grows with `frames`."""
    g = torch.Generator().manual_seed(seed)
    if kind in ("image", "video"):
        data = torch.randint(0, 256, (frames, 3, 30, 40), dtype=torch.uint8, generator=g)
        times = torch.arange(frames, dtype=torch.float64) if kind == "video" else None
        return Media(kind, data, times, origin="made")
    if kind == "audio":
        return Media(kind, torch.rand(1, 32000 * frames, generator=g) - 0.5, rate=16000, origin="made")
    return Media(kind, torch.randn(256, 6, generator=g), origin="made")


def item(encoder: Encoder, frames: int, seed: int = 0) -> Tensor:
    """A prepared item with exactly `frames` frames."""
    kind = next(k for k in ("video", "audio", "image", "points") if k in encoder.kinds)
    one = [encoder.prepare(media(kind, 1 if kind in ("image", "points") else frames, seed + i)) for i in range(frames)]
    return torch.cat(one)[:frames]


@torch.no_grad()
def shapes(encoder: Encoder) -> None:
    """[M,F,...] -> [M,F,N,E], finite, and other items give other features."""
    unsaid = [name for name in ("width", "tokens_per_frame") if not hasattr(encoder, name)]
    assert unsaid == [], f"it does not say {', '.join(unsaid)}"
    for frames in (1, 3):
        x = torch.stack([item(encoder, frames), item(encoder, frames, seed=9)])
        out = encoder(x, torch.ones(2, frames, dtype=torch.bool))
        shape = encoder.shape  # raises for layers that do not fit the width
        wanted = (2, frames, shape.tokens, shape.width)
        assert out.tokens.shape == wanted, f"tokens {list(out.tokens.shape)}, and the shape says {list(wanted)}"
        assert out.grid == encoder.grid, f"grid {out.grid}, and the encoder says {encoder.grid}"
        assert encoder.max_frames >= 1, f"max_frames {encoder.max_frames}"
        assert torch.isfinite(out.tokens).all(), "features that are not finite"
        assert not torch.allclose(out.tokens[0], out.tokens[1]), "two items give the same features"


@torch.no_grad()
def a_masked_frame_changes_nothing(encoder: Encoder) -> None:
    """Real frames have the same features whatever stands in the others, and beside which item they lie."""
    x = torch.stack([item(encoder, 3), item(encoder, 3, seed=9)])
    frames = torch.tensor([[True, True, True], [True, False, False]])
    other = x.clone()
    other[1, 1:] = 100 * torch.randn(other[1, 1:].shape, generator=torch.Generator().manual_seed(5))
    one, two = encoder(x, frames), encoder(other, frames)
    alone = encoder(x[1:, :1], frames[1:, :1])
    assert torch.equal(one.tokens[frames], two.tokens[frames]), "a frame that is not real changes features"
    torch.testing.assert_close(one.tokens[1, :1], alone.tokens[0], rtol=1e-5, atol=1e-5)


def prepare_repeats(encoder: Encoder) -> None:
    """The same medium is prepared alike each time, and with the same `rng` too."""
    for kind in encoder.kinds:
        one = media(kind, 1 if kind in ("image", "points") else 2)
        first = encoder.prepare(one, np.random.default_rng(3))
        assert torch.equal(first, encoder.prepare(one, np.random.default_rng(3))), f"{kind}: other numbers, same rng"
        assert torch.equal(encoder.prepare(one), encoder.prepare(one)), f"{kind}: chance without rng"
        assert first.shape[0] >= 1, f"{kind}: no frame"


def other_kinds_are_refused(encoder: Encoder) -> None:
    """By name, before anything is done; the base class sees to it."""
    assert encoder.kinds and set(encoder.kinds) <= set(KINDS), f"kinds {encoder.kinds}"
    for kind in set(KINDS) - set(encoder.kinds):
        for ask in (lambda kind=kind: encoder.prepare(media(kind)), lambda kind=kind: encoder.sampling(kind)):
            try:
                ask()
            except MediaError as error:
                assert error.reason is Reason.wrong_media_type and kind in error.seen, str(error)
            else:
                raise AssertionError(f"{kind} is taken, which is not among {encoder.kinds}")


def sampling(encoder: Encoder) -> None:
    """Each kind that it takes has a rule for frames."""
    for kind in encoder.kinds:
        assert encoder.sampling(kind).frames >= 1, kind


def builds_on_the_meta_device(encoder: Encoder) -> None:
    """Names and shapes without memory: what `mmtune plan` and `show` do."""
    with torch.device("meta"):
        twin = type(encoder)(encoder.config)
    assert twin.shape == encoder.shape, f"{twin.shape} on meta, {encoder.shape} else"
    real = [name for name, p in twin.named_parameters() if not p.is_meta]
    assert real == [], f"made outside the meta device: {', '.join(real)}"


def weights_are_found_again(encoder: Encoder) -> None:
    """Built in whatever state of chance, weights and fingerprint are the same: a run stores a checksum of them."""
    prints = set()
    for seed in (3, 4):
        with random_state.seeded(seed):
            prints.add(model.encoder("branches.test.encoder", encoder.config).fingerprint())
    assert len(prints) == 1, "two builds have other weights"


def fingerprint_follows_the_weights(encoder: Encoder) -> None:
    """It is the key under which features are stored."""
    before = encoder.fingerprint()
    assert encoder.fingerprint() == before, "two fingerprints of one encoder"
    parameter: Any = next(encoder.parameters())
    with torch.no_grad():
        kept = parameter.clone()
        parameter.add_(1)
        changed = encoder.fingerprint()
        parameter.copy_(kept)
    assert changed != before, "other weights, and the same fingerprint"
    assert encoder.fingerprint() == before, "the same weights, and another fingerprint"


CHECKS = (
    shapes,
    a_masked_frame_changes_nothing,
    prepare_repeats,
    other_kinds_are_refused,
    sampling,
    builds_on_the_meta_device,
    weights_are_found_again,
    fingerprint_follows_the_weights,
)
