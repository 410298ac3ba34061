"""Every language model keeps the contract, with whatever architecture is inside."""

import pytest

from mmtune import registry, testing
from tests.llm import tiny

KINDS = {"hf": ("llama", "mistral", "gemma3")}
"""Architectures that an entry is tried with."""
CHANGES = {"mistral": {"sliding_window": 4}}
CASES = [(name, kind) for name in registry.names("llm") for kind in KINDS[name]]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def llm(request, tmp_path_factory):
    name, kind = request.param
    folder = tiny.folder(tmp_path_factory.mktemp(kind), kind, **CHANGES.get(kind, {}))
    return testing.make("llm", name, {"folder": str(folder)})


@pytest.mark.parametrize("check", testing.checks("llm"), ids=lambda check: check.__name__)
def test_contract(llm, check):
    check(llm)
