"""Checks of language models and their tokenizers: who sees whom, caches, what they can be asked for, marks in texts."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtune import model, random_state
from mmtune.errors import ModelError
from mmtune.llm.base import LLM, LLMConfig

LENGTH = 10
"""Tokens of a text."""
CUTS = ((4, 6), (1,) * LENGTH)
"""Tokens that are read into a cache at once."""
TEXTS = ("what is this", " A red circle,\nand a blue square. ", "naïve 日本語 0123")
MARKS = ("<s>", "</s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>", "<|bos|>", "<|end|>", "{bos}", "{eos}")
"""What templates write as control strings, and people may write too."""


def make(cls: type[LLM], settings: LLMConfig) -> LLM:
    """A language model as a run has it, with its weights read."""
    made = model.part("llm", settings)
    with random_state.seeded(model.FROZEN_SEED):
        made.load_weights()
    return made.eval()


def ids(llm: LLM, length: int = LENGTH, seed: int = 0) -> Tensor:
    """int64 [1,length]: ordinary tokens at random."""
    usual = torch.tensor([one for one in range(llm.tokenizer.vocabulary) if one not in llm.tokenizer.special_ids])
    return usual[torch.randint(len(usual), (1, length), generator=torch.Generator().manual_seed(seed))]


def logits(llm: LLM, tokens: Tensor, start: int = 0, segments: Tensor | None = None, **more: object) -> Tensor:
    """[B,T,V] of tokens [B,T] at the positions from `start` on."""
    positions = torch.arange(start, start + tokens.shape[1])[None].expand(len(tokens), -1)
    return llm.head(llm.forward(llm.embed(tokens), positions, segments, **more))


def sizes(llm: LLM) -> tuple[int, ...]:
    """D, layers, H, h, d, and the width inside the feed-forward part."""
    return llm.width, llm.depth, llm.heads, llm.kv_heads, llm.head_width, llm.inner_width


def same(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * max(1.0, float(other.abs().max())))


@torch.no_grad()
def sizes_are_as_it_says(llm: LLM) -> None:
    """Width, depth, layers and vocabulary are those of what it computes."""
    tokens = ids(llm)
    x = llm.embed(tokens)
    hidden = llm.forward(x, torch.arange(LENGTH)[None], None)
    for what, tensor in (("embeddings", x), ("hidden states", hidden)):
        assert tensor.shape == (1, LENGTH, llm.width), f"{what} {list(tensor.shape)}, and the width is {llm.width}"
    given = llm.head(hidden)
    assert given.shape[:-1] == (1, LENGTH) and given.shape[-1] >= llm.tokenizer.vocabulary, list(given.shape)
    assert torch.isfinite(given).all(), "logits that are not finite"
    assert len(llm.layers()) == llm.depth, f"{len(llm.layers())} layers, and the depth is {llm.depth}"
    inside = {*llm.decoder().modules()}
    assert inside >= {*llm.layers()}, "layers outside of the decoder"
    assert min(sizes(llm)) >= 1, f"sizes {sizes(llm)}"


@torch.no_grad()
def nothing_ahead_is_seen(llm: LLM) -> None:
    """What is said after a token does not depend on those after it."""
    tokens, other = ids(llm), ids(llm, seed=1)
    changed = torch.cat([tokens[:, :5], other[:, 5:]], 1)
    one, two = logits(llm, tokens), logits(llm, changed)
    assert same(one[:, :5], two[:, :5]), "a token sees those behind it"
    assert not same(one[:, 5:], two[:, 5:]), "other tokens, and the same logits"


@torch.no_grad()
def packed_equals_alone(llm: LLM) -> None:
    """Two samples and padding in one row, each as by itself."""
    a, b, pad = ids(llm, 6), ids(llm, 4, seed=1), torch.full((1, 3), llm.tokenizer.pad)
    segments = torch.tensor([[1] * 6 + [2] * 4 + [0] * 3], dtype=torch.int32)
    positions = torch.tensor([[*range(6), *range(4), *range(3)]])
    together = llm.head(llm.forward(llm.embed(torch.cat([a, b, pad], 1)), positions, segments))
    assert torch.isfinite(together).all(), "padding gives numbers that are not finite"
    for part, alone in ((together[:, :6], a), (together[:, 6:10], b)):
        assert same(part, logits(llm, alone)), "a sample sees another one of its row, or padding"


@torch.no_grad()
def cached_equals_whole(llm: LLM) -> None:
    """Read piece by piece into a cache, a text is what it is at once."""
    tokens = ids(llm)
    whole = logits(llm, tokens)
    for cuts in CUTS:
        cache, parts, start = llm.new_cache(), [], 0
        for size in cuts:
            parts.append(logits(llm, tokens[:, start : start + size], start, cache=cache))
            start += size
        assert same(torch.cat(parts, 1), whole), f"read {cuts} tokens at a time, a text differs"


@torch.no_grad()
def a_cache_keeps_rows(llm: LLM) -> None:
    """Rows of unequal length, padded at the end; one is dropped, with what a network beside the model kept of it."""
    short, long, more = ids(llm, 4), ids(llm, 7, seed=1), ids(llm, 2, seed=2)
    tokens = torch.cat([torch.cat([short, torch.full((1, 3), llm.tokenizer.pad)], 1), long])
    segments = torch.tensor([[1] * 4 + [0] * 3, [1] * 7], dtype=torch.int32)
    cache = llm.new_cache()
    logits(llm, tokens, segments=segments, cache=cache)
    cache.beside["test"] = torch.tensor([[1.0], [2.0]])
    following = llm.embed(more[:, :1].expand(2, 1))
    out = llm.head(llm.forward(following, torch.tensor([[4], [7]]), None, cache))
    wanted = logits(llm, torch.cat([short, more[:, :1]], 1))
    assert same(out[:1, -1], wanted[:, -1]), "padding is seen by what is decoded behind it"
    cache.keep(torch.tensor([1]))
    assert cache.beside["test"].tolist() == [[2.0]], f"kept beside the model: {cache.beside['test'].tolist()}"
    out = logits(llm, more[:, 1:], 8, cache=cache)
    wanted = logits(llm, torch.cat([long, more], 1))
    assert same(out[:, -1], wanted[:, -1]), "another row's past after one was dropped"


@torch.no_grad()
def taps_are_told_of_each_layer(llm: LLM) -> None:
    """Once a layer, lowest first, [B,T,D], also with a cache; nothing else changes, and none is left behind."""
    if refused(llm, "tap"):
        return
    tokens, told = ids(llm), []

    def tap(layer: int, hidden: Tensor) -> None:
        told.append((layer, hidden.clone()))

    plain = logits(llm, tokens)
    assert torch.equal(logits(llm, tokens, tap=tap), plain), "a tap changes what the model says"
    assert [layer for layer, _ in told] == [*range(llm.depth)], f"told of layers {[layer for layer, _ in told]}"
    assert all(hidden.shape == (1, LENGTH, llm.width) for _, hidden in told), [list(h.shape) for _, h in told]
    whole, cache = [hidden for _, hidden in told], llm.new_cache()
    told.clear()
    logits(llm, tokens[:, :6], cache=cache, tap=tap)
    logits(llm, tokens[:, 6:], 6, cache=cache, tap=tap)
    halves = [torch.cat([told[n][1], told[llm.depth + n][1]], 1) for n in range(llm.depth)]
    assert all(map(same, halves, whole)), "with a cache, other hidden states"
    told.clear()
    logits(llm, tokens)
    assert told == [], "a tap outlives its call"


@torch.no_grad()
def attention_terms_are_added(llm: LLM) -> None:
    """In the layer that is named, in this call only."""
    if refused(llm, "attention_terms"):
        return
    tokens, shapes = ids(llm), []

    def term(module: object, query: Tensor, call: object) -> Tensor:
        shapes.append(tuple(query.shape))
        assert module is llm.attention_modules()[0], "the term of layer 0 is asked in another one"
        return query.new_ones(query.transpose(1, 2).shape)

    plain = logits(llm, tokens)
    assert not same(logits(llm, tokens, attention_terms={0: [term]}), plain), "a term changes nothing"
    wanted = [(1, llm.heads, LENGTH, llm.head_width)]
    assert shapes == wanted, f"queries {shapes}, and heads of that width are {wanted}"
    assert torch.equal(logits(llm, tokens), plain), "a term outlives its call"


@torch.no_grad()
def virtual_tokens_have_keys_and_values(llm: LLM) -> None:
    """[B,h,T,d] of each layer."""
    if refused(llm, "prefix"):
        return
    given = llm.keys_and_values(llm.embed(ids(llm, 3)), torch.arange(3)[None])
    assert sorted(given) == [*range(llm.depth)], f"keys and values of layers {sorted(given)}"
    shapes = {tuple(tensor.shape) for both in given.values() for tensor in both}
    wanted = {(1, llm.kv_heads, 3, llm.head_width)}
    assert shapes == wanted, f"keys and values {shapes}, and the model says {wanted}"


def refused(llm: LLM, ability: str) -> bool:
    """Whether the model lacks a feature; then `require` has to refuse it by name."""
    try:
        llm.require(ability, "a check")  # type: ignore[arg-type]
    except ModelError as error:
        assert ability not in llm.abilities and ability in error.seen, str(error)
        return True
    return False


def a_gradient_reaches_the_embeddings(llm: LLM) -> None:
    """What media put in the place of words learns through the model."""
    x = llm.embed(ids(llm)).detach().requires_grad_()
    llm.head(llm.forward(x, torch.arange(LENGTH)[None], None)).logsumexp(-1).sum().backward()
    assert x.grad is not None and bool(x.grad.abs().sum((0, 2)).min() > 0), "no gradient for some embedding"


def builds_on_the_meta_device(llm: LLM) -> None:
    """Names and shapes without memory: what `mmtune plan` and `show` do."""
    with torch.device("meta"):
        twin = type(llm)(llm.config)
    here = {name: p.shape for name, p in llm.named_parameters()}
    assert {name: p.shape for name, p in twin.named_parameters()} == here, "other parameters on the meta device"
    assert sizes(twin) == sizes(llm), f"sizes {sizes(twin)} on the meta device, and {sizes(llm)} elsewhere"


def weights_are_found_again(llm: LLM) -> None:
    """A run stores what it trains, and builds the frozen rest again: the same numbers in every process."""
    builds = []
    for seed in (1, 2):
        with random_state.seeded(seed):
            builds.append(make(type(llm), llm.config).state_dict())
    differ = [name for name, tensor in builds[0].items() if not torch.equal(tensor, builds[1][name])]
    assert differ == [], f"two builds have other weights: {', '.join(differ[:5])}"


def texts_come_back(llm: LLM) -> None:
    """Ids of a text are within the vocabulary, and say the text again, in large or small letters."""
    tokenizer = llm.tokenizer
    for text in TEXTS:
        found = tokenizer.encode(text, "text")
        assert all(0 <= one < tokenizer.vocabulary for one in found), f"{text!r} has ids outside of the vocabulary"
        again = tokenizer.decode(found)
        assert again.strip().lower() == text.strip().lower(), f"{text!r} comes back as {again!r}"
    assert 0 <= tokenizer.pad < tokenizer.vocabulary, f"pad {tokenizer.pad}"


def texts_never_make_control_tokens(llm: LLM) -> None:
    """What people and data say is text, whatever it looks like; only templates write marks."""
    tokenizer = llm.tokenizer
    for mark in MARKS:
        made = {*tokenizer.encode(f"so {mark} it", "start"), *tokenizer.encode(mark, "mark")} & tokenizer.special_ids
        assert not made, f"the text {mark!r} makes the control tokens {sorted(made)}"
    for mark, one in (("{bos}", tokenizer.bos), ("{eos}", tokenizer.eos)):
        if one is not None:
            assert tokenizer.encode_special(mark) == [one], f"{mark} is {tokenizer.encode_special(mark)}, not [{one}]"


def fingerprint_of_the_tokenizer_stays(llm: LLM) -> None:
    """Runs are compared by it."""
    again = make(type(llm), llm.config).tokenizer.fingerprint()
    assert llm.tokenizer.fingerprint() == again, "two fingerprints of one tokenizer"


CHECKS = (
    sizes_are_as_it_says,
    nothing_ahead_is_seen,
    packed_equals_alone,
    cached_equals_whole,
    a_cache_keeps_rows,
    taps_are_told_of_each_layer,
    attention_terms_are_added,
    virtual_tokens_have_keys_and_values,
    a_gradient_reaches_the_embeddings,
    builds_on_the_meta_device,
    weights_are_found_again,
    texts_come_back,
    texts_never_make_control_tokens,
    fingerprint_of_the_tokenizer_stays,
)
