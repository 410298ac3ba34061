"""Every optimizer keeps the contract; a newcomer is tested by being there."""

from __future__ import annotations

import pytest

from mmtune import registry, testing

OPTIONS = [(name, {}) for name in registry.names("optimizers")] + [
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("muon", {"adjust_lr_fn": "original", "nesterov": False}),
    ("adamw_8bit", {"min_8bit_size": 1}),
]
NEEDS = {"adamw_8bit": "bitsandbytes"}
"""Optimizers of an optional package."""


@pytest.mark.parametrize("check", testing.checks("optimizers"), ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_contract(name, options, check):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    check(testing.make("optimizers", name, options))
