"""Every tuner keeps the contract; a newcomer is tested by being there (with a line where its defaults fit no model)."""

import pytest

from mmtune import registry, testing

MORE = {
    "hf_peft": [
        {"method": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]},
        {"method": "ia3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ],
    "prompts": [{"length": 3, "layers": 2}],
}
"""Options of tuners; one without a line is tried with its defaults."""
CASES = [(name, tree) for name in registry.names("tuners") for tree in MORE.get(name, [{}])]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1].get('method', '')}".rstrip("-"))
def tuner(request):
    return testing.make("tuners", *request.param)


@pytest.mark.parametrize("check", testing.checks("tuners"), ids=lambda check: check.__name__)
def test_contract(tuner, check):
    check(tuner)
