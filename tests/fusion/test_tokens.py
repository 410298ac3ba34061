"""Embeddings land in exactly their places, in order, and a wrong count is an error."""

import pytest
import torch
from torch import nn

from mmtune.errors import ModelError
from mmtune.fusion.tokens import Config, Tokens, write
from mmtune.types import Batch, Embeds

D = 3


class Echo(nn.Module):
    """A language model that gives back what it is given and remembers the rest of the call."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, D)

    def embed(self, ids):
        return self.table(ids)

    def forward(self, x, positions, segments, cache=None):
        self.call = (positions, segments, cache)
        return x


def batch(slots, rows=2, length=8):
    tokens = torch.arange(rows * length).view(rows, length)
    media = {name: torch.zeros(len(s), 1, 1) for name, s in slots.items()}
    return Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        positions=torch.arange(length).expand(rows, -1).clone(),
        segments=torch.ones(rows, length, dtype=torch.int32),
        media=media,
        frame_mask={name: torch.ones(len(s), 1, dtype=torch.bool) for name, s in slots.items()},
        slots={name: torch.tensor(s).view(-1, 4) for name, s in slots.items()},
    )


def embeds(lengths, first=100.0):
    """Items whose place k holds the number first + 10 * item + k; places beyond the length are noise."""
    most = max(lengths)
    numbers = torch.tensor([[first + 10.0 * m + k for k in range(most)] for m in range(len(lengths))])
    mask = torch.arange(most) < torch.tensor(lengths)[:, None]
    tokens = torch.where(mask, numbers, torch.full((), -1.0))
    return Embeds(tokens[..., None].expand(-1, -1, D).clone(), mask)


@pytest.fixture
def fusion():
    return Tokens(Config(), llm_width=D, depth=1, heads=1)


def test_exact_places(fusion):
    llm = Echo()
    one = batch({"sight": [[0, 1, 1, 2], [1, 1, 0, 3], [0, 1, 5, 1]], "sound": [[1, 1, 6, 2]]})
    out = fusion(llm, one, {"sight": embeds([2, 3, 1]), "sound": embeds([2], first=500.0)})
    text = llm.embed(one.tokens)
    want = text.clone()
    want[0, 1:3] = torch.tensor([[100.0], [101.0]])
    want[1, 0:3] = torch.tensor([[110.0], [111.0], [112.0]])
    want[0, 5] = 120.0
    want[1, 6:8] = torch.tensor([[500.0], [501.0]])
    assert torch.equal(out, want)
    assert llm.call[0] is one.positions
    assert llm.call[1] is one.segments
    assert llm.call[2] is None


def test_masked_places_in_between_are_skipped():
    x = torch.zeros(1, 5, D)
    given = embeds([4])
    given.mask[0, 1] = False
    out = write(x, "sight", given, torch.tensor([[0, 1, 1, 3]]))
    assert out[0, :, 0].tolist() == [0, 100, 102, 103, 0]


def test_gradients_reach_embeddings_and_text_but_not_pads(fusion):
    llm = Echo()
    one = batch({"sight": [[0, 1, 1, 2]]})
    given = embeds([2])
    given.tokens.requires_grad_()
    fusion(llm, one, {"sight": given}).sum().backward()
    assert (given.tokens.grad == 1).all()
    assert llm.table.weight.grad[one.tokens[0, 0]].any()
    assert not llm.table.weight.grad[one.tokens[0, 1:3]].any()


def test_the_text_stays_as_it_was(fusion):
    llm = Echo()
    out = fusion(llm, batch({}), {})
    assert torch.equal(out, llm.embed(batch({}).tokens))


def test_a_blank_item_changes_nothing_and_stays_in_the_graph(fusion):
    llm = Echo()
    one = batch({})
    given = embeds([2])
    given.mask[:] = False
    given.tokens.requires_grad_()
    out = fusion(llm, one, {"sight": given})
    assert torch.equal(out, llm.embed(one.tokens))
    out.sum().backward()
    assert given.tokens.grad is not None
    assert not given.tokens.grad.any()


def test_with_a_cache_one_plain_segment_needs_no_mask(fusion):
    llm, one = Echo(), batch({})
    fusion(llm, one, {}, cache="cache")
    assert llm.call[1] is None
    assert llm.call[2] == "cache"
    one.segments[0, -1] = 0
    fusion(llm, one, {}, cache="cache")
    assert llm.call[1] is one.segments


@pytest.mark.parametrize(
    ("slots", "lengths", "word"),
    [
        ([[0, 1, 1, 2]], [3], "3 tokens from the connector, slot of 2"),
        ([[0, 1, 1, 3]], [2], "2 tokens from the connector, slot of 3"),
        ([[0, 1, 7, 2]], [2], "in row 0 of 8 tokens"),
        ([[0, 1, 1, 2]], [2, 2], "2 items for 1 slots"),
    ],
)
def test_wrong_counts_are_errors(fusion, slots, lengths, word):
    with pytest.raises(ModelError, match=word):
        fusion(Echo(), batch({"sight": slots}), {"sight": embeds(lengths)})


def test_low_precision_embeddings_take_the_texts_dtype():
    x = torch.zeros(1, 4, D, dtype=torch.bfloat16)
    assert write(x, "sight", embeds([2]), torch.tensor([[0, 1, 1, 2]])).dtype == torch.bfloat16
