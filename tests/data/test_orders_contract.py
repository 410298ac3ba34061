"""Every order keeps the contract; a newcomer is tested by being there."""

import pytest

from mmtune import registry, testing

OPTIONS = {"item_response": {"measure": "qa/exact_match"}}
"""Options that an order does not go without."""


@pytest.mark.parametrize("check", testing.checks("data/orders"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names("data/orders"))
def test_contract(name, check):
    check(testing.make("data/orders", name, OPTIONS.get(name)))
