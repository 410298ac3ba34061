"""Checks of fusions: an item speaks to its own segment, packed and cached equal plain, nothing outlives the call."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from torch import Tensor

from mmtune import random_state
from mmtune.fusion.base import Fusion, FusionConfig
from mmtune.llm.base import LLM
from mmtune.testing import _pocket
from mmtune.types import IGNORE, Batch, Embeds

TOKENS = 3
"""Tokens of an item."""
BRANCH = "sight"
LENGTH = 7
"""Tokens of a segment."""


@cache
def llm() -> LLM:
    """The language model that ships with mmtune, frozen."""
    return _pocket.llm()


def make(cls: type[Fusion], settings: FusionConfig) -> Fusion:
    """A fusion in front of the language model that ships with mmtune, for items of TOKENS tokens.

    Parameters that start at zero, as gates do, are drawn at random: the media would have no effect otherwise.
    """
    with random_state.seeded(0):
        made = cls(settings, llm_width=llm().width, depth=llm().depth, heads=llm().heads)
        for parameter in made.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.5)
    made.check(llm(), {BRANCH: TOKENS})
    return made.eval()


def batch(fusion: Fusion, rows: int = 1, segments: int = 2, seed: int = 0) -> Batch:
    """Rows of some segments of LENGTH tokens and one place of padding; an item in each segment."""
    g = torch.Generator().manual_seed(seed)
    size = segments * LENGTH + 1
    tokens = torch.randint(20, 60, (rows, size), generator=g)
    numbers = [n for n in range(1, segments + 1) for _ in range(LENGTH)]
    length = TOKENS if fusion.uses_placeholders else 0
    slots = [[row, n, 1 + LENGTH * (n - 1), length] for row in range(rows) for n in range(1, segments + 1)]
    return Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, IGNORE),
        positions=torch.tensor([[*range(LENGTH)] * segments + [0]]).repeat(rows, 1),
        segments=torch.tensor([[*numbers, 0]] * rows, dtype=torch.int32),
        media={BRANCH: torch.zeros(len(slots), 1, 1)},
        frame_mask={BRANCH: torch.ones(len(slots), 1, dtype=torch.bool)},
        slots={BRANCH: torch.tensor(slots)},
    )


def items(count: int = 2, seed: int = 0) -> Embeds:
    """Random embeddings [M,K,D]."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, TOKENS, llm().width, generator=g)
    return Embeds(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def part(whole: Batch, columns: slice, row: int = 0) -> Batch:
    """The text of some columns of a row, as one segment without media."""
    texts = (tensor[row : row + 1, columns] for tensor in (whole.tokens, whole.labels, whole.positions))
    return Batch(*texts, torch.ones_like(whole.segments[row : row + 1, columns]))


def alone(whole: Batch, columns: slice, item: int, row: int = 0) -> Batch:
    """One segment of a packed row with its item."""
    one = part(whole, columns, row)
    slots = whole.slots[BRANCH][item : item + 1].clone()
    slots[:, 0], slots[:, 1], slots[:, 2] = 0, 1, slots[:, 2] - columns.start
    one.media, one.frame_mask = {BRANCH: torch.zeros(1, 1, 1)}, {BRANCH: torch.ones(1, 1, dtype=torch.bool)}
    one.slots = {BRANCH: slots}
    return one


def same(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * max(1.0, float(other.abs().max())))


@torch.no_grad()
def an_item_speaks_to_its_own_segment_only(fusion: Fusion) -> None:
    """Another item in the second segment changes what is said there, and nothing in the first."""
    one, other, packed = items(), items(), batch(fusion)
    other.tokens[1] = items(seed=5).tokens[1]
    a, b = fusion(llm(), packed, {BRANCH: one}), fusion(llm(), packed, {BRANCH: other})
    assert a.shape == (1, 2 * LENGTH + 1, llm().width), f"hidden states {list(a.shape)}"
    assert torch.isfinite(a[:, :-1]).all(), "hidden states that are not finite"
    assert same(a[:, :LENGTH], b[:, :LENGTH]), "an item is seen by another segment"
    assert not same(a[:, 2 * LENGTH - 1], b[:, 2 * LENGTH - 1]), "an item changes nothing in its segment"


@torch.no_grad()
def packed_equals_alone(fusion: Fusion) -> None:
    """Two segments of a row, each as in a row of its own."""
    packed, given = batch(fusion), items()
    together = fusion(llm(), packed, {BRANCH: given})
    for m, columns in enumerate((slice(0, LENGTH), slice(LENGTH, 2 * LENGTH))):
        embeds = Embeds(given.tokens[m : m + 1], given.mask[m : m + 1])
        out = fusion(llm(), alone(packed, columns, m), {BRANCH: embeds})
        assert same(together[:, columns], out), "a packed segment differs from the same one alone"


@torch.no_grad()
def cached_equals_whole(fusion: Fusion) -> None:
    """A prompt with its item is read into a cache, then one token at a time; a row that has ended is dropped."""
    rows, given = batch(fusion, rows=2, segments=1), items()
    prompt, start = alone(rows, slice(0, LENGTH), 0), LENGTH - 2
    both = Batch(
        *(tensor[:, :start] for tensor in (rows.tokens, rows.labels, rows.positions, rows.segments)),
        rows.media, rows.frame_mask, rows.slots,
    )  # fmt: skip
    cache = llm().new_cache()
    outs = [fusion(llm(), both, {BRANCH: given}, cache)[:1]]
    cache.keep(torch.tensor([0]))
    first = Embeds(given.tokens[:1], given.mask[:1])
    for column in range(start, LENGTH):
        token = part(prompt, slice(column, column + 1))
        if not fusion.uses_placeholders:
            token.media, token.frame_mask, token.slots = prompt.media, prompt.frame_mask, prompt.slots
        outs.append(fusion(llm(), token, {} if fusion.uses_placeholders else {BRANCH: first}, cache))
    whole = fusion(llm(), prompt, {BRANCH: first})
    assert same(torch.cat(outs, 1), whole), "read into a cache, a prompt with an item differs"


@torch.no_grad()
def nothing_outlives_the_call(fusion: Fusion) -> None:
    """The language model says afterwards what it said before."""
    packed, model = batch(fusion), llm()
    before = model.forward(model.embed(packed.tokens), packed.positions, packed.segments)
    fusion(model, packed, {BRANCH: items()})
    after = model.forward(model.embed(packed.tokens), packed.positions, packed.segments)
    assert torch.equal(before, after), "the language model is not as it was"


def text_alone_is_read(fusion: Fusion) -> None:
    """A batch without media, and an item without a real token that keeps ranks in step."""
    packed = batch(fusion)
    text = Batch(packed.tokens, packed.labels, packed.positions, packed.segments)
    out = fusion(llm(), text, {})[:, :-1]
    assert torch.isfinite(out).all(), "hidden states of a text that are not finite"


def gradients_reach_media_and_parameters(fusion: Fusion) -> None:
    """What stands in front of the fusion learns through it, and so does all of itself."""
    given = items()
    given.tokens.requires_grad_()
    fusion.zero_grad()
    fusion(llm(), batch(fusion), {BRANCH: given})[:, : 2 * LENGTH].square().sum().backward()
    assert given.tokens.grad is not None and given.tokens.grad.abs().sum() > 0, "no gradient for the media"
    still = [name for name, p in fusion.named_parameters() if p.grad is None]
    assert still == [], f"outside of the graph: {', '.join(still)}"


@torch.no_grad()
def half_precision(fusion: Fusion) -> None:
    """A language model in bfloat16 under autocast, as `run.precision: bf16` has it, and one that is opened so."""
    small, whole, packed = deepcopy(llm()).bfloat16(), llm(), batch(fusion)
    wanted = fusion(whole, packed, {BRANCH: items()})[:, :-1]
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = fusion(small, packed, {BRANCH: items()})[:, :-1]
        assert out.dtype == torch.bfloat16, f"hidden states in {out.dtype} of a model in bfloat16"
        off = float((out.float() - wanted).abs().max() / wanted.abs().max())
        assert off < 0.1, f"in bfloat16 {off:.0%} away from what float32 says"


def builds_on_the_meta_device(fusion: Fusion) -> None:
    """Names and shapes without memory: what `mmtune plan` and `show` do."""
    with torch.device("meta"):
        twin = type(fusion)(fusion.config, llm_width=llm().width, depth=llm().depth, heads=llm().heads)
    here = {name: p.shape for name, p in fusion.named_parameters()}
    assert {name: p.shape for name, p in twin.named_parameters()} == here, "other parameters on the meta device"


CHECKS = (
    an_item_speaks_to_its_own_segment_only,
    packed_equals_alone,
    cached_equals_whole,
    nothing_outlives_the_call,
    text_alone_is_read,
    gradients_reach_media_and_parameters,
    half_precision,
    builds_on_the_meta_device,
)
