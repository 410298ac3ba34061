"""Every fusion keeps the contract; a newcomer is tested by being there (with a line where its defaults do not fit)."""

import pytest

from mmtune import registry, testing
from mmtune.testing.fusion import TOKENS

MORE = {"added_prompts": [{"length": TOKENS, "layers": 2}, {"length": TOKENS, "absent": "prompts"}]}
"""Options of fusions; one without a line is tried with its defaults."""
CASES = [(name, tree) for name in registry.names("fusion") for tree in MORE.get(name, [{}])]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join([case[0], *case[1]]))
def fusion(request):
    return testing.make("fusion", *request.param)


@pytest.mark.parametrize("check", testing.checks("fusion"), ids=lambda check: check.__name__)
def test_contract(fusion, check):
    check(fusion)
