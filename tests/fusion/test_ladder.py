"""A ladder begins as the plain model, keeps little for the backward pass, and refuses what it cannot read."""

import pytest
import torch

from mmtune import registry, testing
from mmtune.errors import ConfigError, ModelError
from mmtune.llm.hf import HF
from mmtune.testing.fusion import BRANCH, batch, items, llm
from tests.held_bytes import held_bytes

RATIO = 8


def fresh(**options):
    cls = registry.find("fusion", "ladder")
    return cls(cls.Config(**options), llm().width, llm().depth, llm().heads)


def plain():
    cls = registry.find("fusion", "tokens")
    return cls(cls.Config(), llm().width, llm().depth, llm().heads)


def kept(fusion):
    given, packed = items(2 * 20), batch(fusion, rows=2, segments=20)
    given.tokens.requires_grad_()
    return held_bytes(lambda: fusion(llm(), packed, {BRANCH: given}), llm(), fusion)


def test_it_begins_as_the_model_without_it():
    fusion, packed = fresh(), batch(plain())
    with torch.no_grad():
        one = fusion(llm(), packed, {BRANCH: items()})
        assert torch.equal(one, plain()(llm(), packed, {BRANCH: items()}))


def test_nothing_of_the_layers_is_kept_for_a_backward_pass():
    beside, through = kept(fresh(ratio=RATIO)), kept(plain())
    print(f"kept for the backward pass: {beside:,} bytes beside the model, {through:,} through it")
    assert beside < 0.4 * through
    assert kept(fresh(ratio=RATIO, layers=[-1])) < 0.5 * beside, "what is kept grows with the rungs"


def test_no_gradient_goes_through_the_model():
    fusion, opened = fresh(), llm().layers()[0]
    torch.nn.init.normal_(fusion.outward.weight)
    opened.requires_grad_(True)
    try:
        fusion(llm(), batch(fusion), {BRANCH: items()}).sum().backward()
        assert all(parameter.grad is None for parameter in opened.parameters())
    finally:
        opened.requires_grad_(False)


def test_a_tuned_model_is_refused():
    made, names = testing.tuners.tuned(testing.make("tuners", "prompts", {"length": 2}))
    made.get_parameter(names[0]).requires_grad_(True)
    with pytest.raises(ModelError, match=f"tuned.*{names[0]}"):
        fresh().check(made)


def test_a_model_that_tells_nothing_of_its_layers_is_refused(monkeypatch):
    monkeypatch.setattr(HF, "abilities", frozenset())
    with pytest.raises(ModelError, match="ladder.*tap"):
        fresh().check(llm())


@pytest.mark.parametrize(
    "wrong", [{"layers": [0, 0]}, {"layers": [-1, 5]}, {"layers": [6]}, {"ratio": 7}, {"heads": 5}]
)
def test_what_does_not_fit_the_model_is_refused(wrong):
    with pytest.raises(ConfigError, match="ladder"):
        fresh(**wrong)


def test_the_plan_counts_no_layer():
    from dataclasses import replace

    from mmtune import config, model
    from mmtune.recipe import Recipe
    from mmtune.training import estimate

    recipe = config.load(Recipe, "pocket", ["model.fusion.name=ladder"])
    shape = estimate.shape_of(model.build(recipe.model, weights=False, device="meta"), {}, {})
    assert not shape.backward
    through = replace(shape, backward=True)
    one, other = (estimate.activations(each, 640) for each in (shape, through))
    assert one + 640 * shape.depth * estimate.layer_activations(shape) == pytest.approx(other)
    times = [estimate.time_of(each, 640, 320, "replicate", 1, False, False, 1, 1e12, 1e9) for each in (shape, through)]
    assert 2 * times[0].compute == times[1].compute
