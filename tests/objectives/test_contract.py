"""Every objective keeps the contract; a newcomer is tested by being there."""

import pytest

from mmtune import registry, testing


@pytest.mark.parametrize("check", testing.checks("objectives"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names("objectives"))
def test_contract(name, check):
    check(testing.make("objectives", name))
