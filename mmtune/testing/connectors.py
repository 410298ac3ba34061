"""Checks of connectors: arithmetic of tokens, masked frames, gradients, half precision."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from mmtune import random_state
from mmtune.connectors.base import Connector, ConnectorConfig
from mmtune.types import Features, FeatureShape

SHAPE = FeatureShape(width=6, tokens=12, grid=(3, 4), frames=5, layers=2, extra=2)
"""What the encoder before a connector under test gives: two layers side by side, and two numbers after them."""
WIDTH = 10
"""D"""
ROWS = [[True] * 5, [True, False, False, False, False], [True, True, True, False, False]]
"""Real frames of three items."""


def make(cls: type[Connector], settings: ConnectorConfig) -> Connector:
    """A connector between features of SHAPE and a language model of WIDTH."""
    with random_state.seeded(0):
        return cls(settings, SHAPE, WIDTH).eval()


def features(frames: Tensor, seed: int = 0) -> Features:
    """Random features [M,F,N,E] for `frames`, bool [M,F]."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(*frames.shape, SHAPE.tokens, SHAPE.width, generator=g)
    tokens[..., -2:] = 0  # to `anyres` they say where a token belongs: here, in a plain frame
    return Features(tokens, frames, SHAPE.grid)


def shapes_and_arithmetic(connector: Connector) -> None:
    """[M,F,N,E] -> [M,K,D] with K as `tokens_out` says, finite, and other items give other embeddings."""
    for count in (1, 3, 5):
        out = connector(features(torch.ones(2, count, dtype=torch.bool)))
        length = connector.tokens_out(count)
        assert isinstance(length, int), f"tokens_out({count}) is {length!r}"
        assert out.tokens.shape == (2, length, WIDTH), (
            f"{list(out.tokens.shape)}, and tokens_out({count}) says {[2, length, WIDTH]}"
        )
        assert out.mask.all(), f"tokens that are not real, of {count} real frames"
        assert torch.isfinite(out.tokens).all(), "embeddings that are not finite"
        assert not torch.allclose(out.tokens[0], out.tokens[1]), "two items give the same embeddings"


def a_masked_frame_changes_nothing(connector: Connector) -> None:
    """Frames that are not real take no token and move no number."""
    frames = torch.tensor(ROWS)
    counts = [sum(row) for row in ROWS]
    one = features(frames)
    other = Features(torch.where(frames[..., None, None], one.tokens, torch.full((), 1e3)), frames, one.grid)
    out, again = connector(one), connector(other)
    lengths = [connector.tokens_out(count) for count in counts]
    assert out.mask.sum(1).tolist() == lengths, f"real tokens {out.mask.sum(1).tolist()}, tokens_out says {lengths}"
    assert out.tokens.shape[1] == max(lengths), f"K is {out.tokens.shape[1]}, the longest item has {max(lengths)}"
    torch.testing.assert_close(out.tokens[out.mask], again.tokens[again.mask], rtol=1e-5, atol=1e-5)
    for m, count in enumerate(counts):
        alone = connector(Features(one.tokens[m : m + 1, :count], frames[m : m + 1, :count], one.grid))
        torch.testing.assert_close(out.tokens[m][out.mask[m]], alone.tokens[0], rtol=1e-5, atol=1e-5)


def every_parameter_learns(connector: Connector) -> None:
    """A gradient reaches all of them."""
    connector.zero_grad()
    out = connector(features(torch.ones(2, 5, dtype=torch.bool)))
    (out.tokens * torch.randn(out.tokens.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    still = [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.any()]
    # A key's bias shifts all scores of a query alike, so attention does not depend on it.
    still = [name for name in still if not name.endswith("self.key.bias")]
    assert still == [], f"no gradient for {', '.join(still)}"


def an_item_without_frames_is_finite(connector: Connector) -> None:
    """It stands in where a rank has no item, so that all ranks run the same modules."""
    connector.zero_grad()
    blank = Features(torch.zeros(1, 1, SHAPE.tokens, SHAPE.width), torch.zeros(1, 1, dtype=torch.bool), SHAPE.grid)
    (connector(blank).tokens.sum() * 0).backward()
    odd = [name for name, p in connector.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert odd == [], f"gradients that are not finite: {', '.join(odd)}"


def half_precision(connector: Connector) -> None:
    """In bfloat16 it gives bfloat16."""
    frames = torch.tensor(ROWS)
    one = features(frames)
    out = deepcopy(connector).bfloat16()(Features(one.tokens.bfloat16(), frames, one.grid))
    assert out.tokens.dtype == torch.bfloat16, f"{out.tokens.dtype} out of bfloat16"


def features_kept_in_half_precision_are_taken(connector: Connector) -> None:
    """Stored features are float16, whatever the connector is held in."""
    one = features(torch.ones(2, 3, dtype=torch.bool))
    out = connector(Features(one.tokens.half(), one.frame_mask, one.grid))
    assert out.tokens.dtype == torch.float32, f"{out.tokens.dtype} out of a connector in float32"
    torch.testing.assert_close(out.tokens, connector(one).tokens, rtol=0.02, atol=0.02)


def builds_on_the_meta_device(connector: Connector) -> None:
    """Names and shapes without memory."""
    with torch.device("meta"):
        twin = type(connector)(connector.config, SHAPE, WIDTH)
    here = [(name, p.shape) for name, p in connector.named_parameters()]
    assert [(name, p.shape) for name, p in twin.named_parameters()] == here, "other parameters on the meta device"
    assert twin.tokens_out(3) == connector.tokens_out(3), "another length on the meta device"


def calibration_may_be_asked_of_any(connector: Connector) -> None:
    """Told the scale of the words, one with `match_scale` starts there."""
    scaled = deepcopy(connector)
    scaled.calibrate(0.02)
    if getattr(connector.config, "match_scale", False):
        rms = scaled(features(torch.ones(1, 3, dtype=torch.bool))).tokens.pow(2).mean().sqrt().item()
        assert abs(rms - 0.02) < 0.0002, f"calibrated to 0.02, and the output has {rms:.4f}"


CHECKS = (
    shapes_and_arithmetic,
    a_masked_frame_changes_nothing,
    every_parameter_learns,
    an_item_without_frames_is_finite,
    half_precision,
    features_kept_in_half_precision_are_taken,
    builds_on_the_meta_device,
    calibration_may_be_asked_of_any,
)
