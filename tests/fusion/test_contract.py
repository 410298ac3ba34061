"""Every fusion keeps the contract; a newcomer is tested by being there."""

import pytest
import torch

from mmtune import config, registry
from mmtune.types import Batch, Embeds
from tests.llm import tiny

NAMES = registry.names("fusion")
Entry = config.entry("fusion")
TOKENS = 3
TINY: dict[str, dict] = {"added_prompts": {"length": TOKENS}}
"""Options of a fusion whose defaults do not fit a model of two layers."""


class Holder(config.Config):
    fusion: Entry
    """The one under test."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny.llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(params=NAMES)
def fusion(request, llm):
    name = request.param
    found = registry.find("fusion", name)
    chosen = config.validate(Holder, {"fusion": {"name": name, **TINY.get(name, {})}}).fusion
    torch.manual_seed(0)
    made = found(chosen, llm_width=llm.width, depth=llm.depth, heads=llm.heads)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # a gate that starts at zero would hide the media
    return made.eval()


def packed(fusion, llm, seed=0):
    """One row of two segments of seven tokens and a place of padding, an item in each segment."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(8, 40, (1, 15), generator=g)
    segments = torch.tensor([[1] * 7 + [2] * 7 + [0]], dtype=torch.int32)
    positions = torch.tensor([[*range(7), *range(7), 0]])
    length = TOKENS if fusion.uses_placeholders else 0
    return Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        positions=positions,
        segments=segments,
        media={"sight": torch.zeros(2, 1, 1)},
        frame_mask={"sight": torch.ones(2, 1, dtype=torch.bool)},
        slots={"sight": torch.tensor([[0, 1, 1, length], [0, 2, 9, length]])},
    )


def items(llm, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Embeds(torch.randn(2, TOKENS, llm.width, generator=g), torch.ones(2, TOKENS, dtype=torch.bool))


def test_an_item_speaks_to_its_own_segment_only(fusion, llm):
    one, other = items(llm), items(llm)
    other.tokens[1] += 1.0
    batch = packed(fusion, llm)
    with torch.no_grad():
        a = fusion(llm, batch, {"sight": one})
        b = fusion(llm, batch, {"sight": other})
    assert a.shape == (1, 15, llm.width)
    torch.testing.assert_close(a[:, :7], b[:, :7], rtol=1e-5, atol=1e-5)
    assert (a[:, 13] - b[:, 13]).abs().max() > 1e-3


def test_nothing_outlives_the_call(fusion, llm):
    batch = packed(fusion, llm)
    plain = Batch(batch.tokens, batch.labels, batch.positions, batch.segments)
    with torch.no_grad():
        before = llm.forward(llm.embed(plain.tokens), plain.positions, plain.segments)
        fusion(llm, batch, {"sight": items(llm)})
        after = llm.forward(llm.embed(plain.tokens), plain.positions, plain.segments)
    assert torch.equal(before, after)


def test_packed_equals_alone(fusion, llm):
    batch, given = packed(fusion, llm), items(llm)
    with torch.no_grad():
        together = fusion(llm, batch, {"sight": given})
        for m, part in enumerate((slice(0, 7), slice(7, 14))):
            slots = batch.slots["sight"][m : m + 1].clone()
            slots[:, 1], slots[:, 2] = 1, slots[:, 2] - 7 * m
            alone = Batch(
                batch.tokens[:, part],
                batch.labels[:, part],
                batch.positions[:, part],
                torch.ones(1, 7, dtype=torch.int32),
                {"sight": torch.zeros(1, 1, 1)},
                {"sight": torch.ones(1, 1, dtype=torch.bool)},
                {"sight": slots},
            )
            out = fusion(llm, alone, {"sight": Embeds(given.tokens[m : m + 1], given.mask[m : m + 1])})
            torch.testing.assert_close(together[:, part], out, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_media(fusion, llm):
    given = items(llm)
    given.tokens.requires_grad_()
    fusion(llm, packed(fusion, llm), {"sight": given})[:, :14].square().sum().backward()
    assert given.tokens.grad.abs().sum() > 0


def test_config_survives_yaml(fusion):
    text = config.dump({"fusion": fusion.config.model_dump(mode="json")})
    assert config.validate(Holder, config.parse(text, "test")).fusion == fusion.config


def test_fields_are_explained(fusion):
    fields = type(fusion.config).model_fields.items()
    assert [name for name, field in fields if name != "name" and not field.description] == []
