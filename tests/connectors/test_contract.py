"""Every connector keeps the contract; a newcomer is tested by being there (and having a line in TINY)."""

import pytest
import torch

from mmtune import config, registry
from mmtune.types import Features, FeatureShape

NAMES = registry.names("connectors")
Entry = config.entry("connectors")
SHAPE = FeatureShape(width=6, tokens=12, grid=(3, 4), frames=5)
WIDTH = 10

SCALED = {"out_norm": True, "match_scale": True}
TINY: dict[str, list[dict]] = {
    "anyres": [{}, {"depth": 3, "hidden": 7, **SCALED}],
    "linear": [{}, SCALED],
    "mlp": [{}, {"depth": 3, "hidden": 7}],
    "pool": [
        {"time": 2, "height": 2, "width": 2},
        {"time": 4, "height": 2, "width": 3, "short": "repeat"},
        {"time": 2, "height": 2, "width": 2, "norm": True, "bins": True, **SCALED},
    ],
    "query_blocks": [
        {"queries": 3, "width": 8, "depth": 2, "heads": 2},
        {"queries": 2, "width": 6, "depth": 1, "heads": 3, "mlp_ratio": 1.5, "match_scale": True},
        {"queries": 2, "width": 6, "depth": 1, "heads": 1, "out_norm": False},
    ],
    "qformer": [
        {"queries": 3, "width": 8, "depth": 3, "heads": 2},
        {"queries": 2, "width": 8, "depth": 1, "heads": 2, "hidden": 12, "cross_every": 1, **SCALED},
    ],
    "imagebind_bridge": [{"ratio": 2}, {"ratio": 2, "norm": "layer"}],
    "resampler": [
        {"queries": 3, "depth": 2, "heads": 2, "head_width": 4, "frames": 5},
        {"queries": 3, "depth": 2, "heads": 2, "frames": 5, "width": 8, "activation": "gelu", **SCALED},
    ],
    "video_qformer": [
        {"queries": 3, "width": 8, "heads": 2, "frames": 5},
        {"queries": 3, "width": 8, "heads": 2, "frames": 5, "pool": 2, "norm": True, "token_positions": True, **SCALED},
    ],
}
"""The smallest configs of every connector. One without a line is tried with its defaults."""

CASES = [pytest.param(name, tree, id=f"{name}-{i}") for name in NAMES for i, tree in enumerate(TINY.get(name, [{}]))]


class Holder(config.Config):
    connector: Entry
    """The one under test."""


def make(name, tree):
    torch.manual_seed(0)
    made = registry.find("connectors", name)
    connector = made(config.validate(Holder, {"connector": {"name": name, **tree}}).connector, SHAPE, WIDTH)
    return connector.eval()


def features(frames: torch.Tensor, seed: int = 0) -> Features:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(*frames.shape, SHAPE.tokens, SHAPE.width, generator=g)
    tokens[..., -2:] = 0  # to `anyres` they say where a token belongs: here, in a plain frame
    return Features(tokens, frames, SHAPE.grid)


@pytest.fixture(params=[c.values for c in CASES], ids=[c.id for c in CASES])
def connector(request):
    return make(*request.param)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_shapes_and_arithmetic(connector, count):
    out = connector(features(torch.ones(2, count, dtype=torch.bool)))
    places = connector.tokens_out(count)
    assert isinstance(places, int)
    assert out.tokens.shape == (2, places, WIDTH)
    assert out.mask.all()
    assert torch.isfinite(out.tokens).all()
    assert not torch.allclose(out.tokens[0], out.tokens[1])


def test_a_masked_frame_changes_nothing(connector):
    frames = torch.tensor([[True] * 5, [True, False, False, False, False], [True, True, True, False, False]])
    one = features(frames)
    other = Features(torch.where(frames[..., None, None], one.tokens, torch.full((), 1e3)), frames, one.grid)
    out, again = connector(one), connector(other)
    assert out.mask.sum(1).tolist() == [connector.tokens_out(n) for n in (5, 1, 3)]
    assert out.tokens.shape[1] == max(connector.tokens_out(n) for n in (5, 1, 3))
    torch.testing.assert_close(out.tokens[out.mask], again.tokens[again.mask], rtol=1e-5, atol=1e-5)
    for m, count in enumerate((5, 1, 3)):
        alone = connector(Features(one.tokens[m : m + 1, :count], frames[m : m + 1, :count], one.grid))
        torch.testing.assert_close(out.tokens[m][out.mask[m]], alone.tokens[0], rtol=1e-5, atol=1e-5)


def test_every_parameter_learns(connector):
    out = connector(features(torch.ones(2, 5, dtype=torch.bool)))
    (out.tokens * torch.randn_like(out.tokens)).sum().backward()
    still = [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.any()]
    # A key's bias shifts all scores of a query alike, so attention does not depend on it.
    assert [name for name in still if not name.endswith("self.key.bias")] == []


def test_an_item_without_frames_is_finite(connector):
    blank = Features(torch.zeros(1, 1, SHAPE.tokens, SHAPE.width), torch.zeros(1, 1, dtype=torch.bool), SHAPE.grid)
    out = connector(blank)
    (out.tokens.sum() * 0).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in connector.parameters())


def test_config_survives_yaml(connector):
    text = config.dump({"connector": connector.config.model_dump(mode="json")})
    assert config.validate(Holder, config.parse(text, "test")).connector == connector.config


def test_half_precision(connector):
    frames = torch.tensor([[True] * 5, [True, True, False, False, False]])
    connector = connector.bfloat16()
    one = features(frames)
    out = connector(Features(one.tokens.bfloat16(), frames, one.grid))
    assert out.tokens.dtype == torch.bfloat16


def test_features_kept_in_half_precision_are_taken(connector):
    one = features(torch.ones(2, 3, dtype=torch.bool))
    out = connector(Features(one.tokens.half(), one.frame_mask, one.grid))
    assert out.tokens.dtype == torch.float32
    torch.testing.assert_close(out.tokens, connector(one).tokens, rtol=0.02, atol=0.02)


def test_builds_on_the_meta_device(connector):
    with torch.device("meta"):
        twin = type(connector)(connector.config, SHAPE, WIDTH)
    assert [(n, p.shape) for n, p in twin.named_parameters()] == [(n, p.shape) for n, p in connector.named_parameters()]
    assert twin.tokens_out(3) == connector.tokens_out(3)


def test_calibration_may_be_asked_of_any(connector):
    connector.calibrate(0.02)
    if getattr(connector.config, "match_scale", False):
        out = connector(features(torch.ones(1, 3, dtype=torch.bool)))
        assert out.tokens.pow(2).mean().sqrt().item() == pytest.approx(0.02, rel=0.01)


def test_fields_are_explained(connector):
    fields = type(connector.config).model_fields.items()
    assert [name for name, field in fields if name != "name" and not field.description] == []
