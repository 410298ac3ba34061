"""The perceiver resampler against its formula written out, and where it tells frames and places apart."""

import pytest
import torch

from mmtune.connectors.resampler import Config, Resampler
from mmtune.errors import ConfigError
from mmtune.types import Features, FeatureShape

SHAPE = FeatureShape(width=6, tokens=4, grid=(2, 2), frames=3)


def make(**tree):
    torch.manual_seed(0)
    config = Config(**{"queries": 3, "depth": 2, "heads": 2, "head_width": 5, "frames": 3, **tree})
    return Resampler(config, SHAPE, 10).eval()


def features(frames=3):
    g = torch.Generator().manual_seed(1)
    return Features(torch.randn(2, frames, 4, 6, generator=g), torch.ones(2, frames, dtype=torch.bool), (2, 2))


def norm(x, module):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * module.weight + (
        module.bias
    )


def test_by_its_formula():
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    given = features()
    media = (given.tokens + model.frame_positions.weight[:, None]).flatten(1, 2)
    x = model.latents.expand(2, -1, -1)
    for layer in model.layers:
        asked = norm(x, layer.norm_latents)
        both = torch.cat([norm(media, layer.norm_media), asked], 1)
        heads = []
        for h in range(2):
            rows = slice(5 * h, 5 * h + 5)
            q, k, v = (
                asked @ layer.query.weight[rows].T,
                both @ layer.key.weight[rows].T,
                both @ layer.value.weight[rows].T,
            )
            heads.append((q @ k.transpose(1, 2) / 5**0.5).softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ layer.out.weight.T
        x = x + (norm(x, layer.norm) @ layer.up.weight.T).clamp(min=0).square() @ layer.down.weight.T
    want = norm(x, model.norm) @ model.proj.weight.T + model.proj.bias
    torch.testing.assert_close(model(given).tokens, want, rtol=1e-4, atol=1e-4)


def test_frames_are_told_apart_and_places_are_not():
    model, given = make(), features()
    out = model(given).tokens
    turned = Features(given.tokens.flip(1), given.frame_mask, given.grid)
    moved = Features(given.tokens.flip(2), given.frame_mask, given.grid)
    assert not torch.allclose(model(turned).tokens, out, atol=1e-4)
    torch.testing.assert_close(model(moved).tokens, out, rtol=1e-4, atol=1e-5)


def test_too_many_frames_are_refused():
    with pytest.raises(ConfigError, match="frames: 3"):
        make(frames=2)
