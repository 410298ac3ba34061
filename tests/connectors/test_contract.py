"""Every connector keeps the contract; a newcomer is tested by being there (and having a line in TINY)."""

import pytest

from mmtune import registry, testing

NAMES = registry.names("connectors")

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


@pytest.fixture(scope="module", params=[c.values for c in CASES], ids=[c.id for c in CASES])
def connector(request):
    return testing.make("connectors", *request.param)


@pytest.mark.parametrize("check", testing.checks("connectors"), ids=lambda check: check.__name__)
def test_contract(connector, check):
    check(connector)
