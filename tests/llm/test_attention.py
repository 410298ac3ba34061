"""Packed equals alone, cached equals full, gated prompts at zero equal the plain model; and no road without a mask."""

import pytest
import torch

from mmtune.errors import ModelError
from mmtune.llm._attention import Call, prompt_term
from tests.llm import tiny

CLOSE = 5e-6
KINDS = ["llama", "qwen2", "mistral"]
CHANGES = {"mistral": {"sliding_window": 4}}


@pytest.fixture(scope="module", params=KINDS)
def llm(request, tmp_path_factory):
    return tiny.llm(tmp_path_factory.mktemp(request.param), request.param, **CHANGES.get(request.param, {}))


def ids(length, seed=0):
    return torch.randint(20, 340, (1, length), generator=torch.Generator().manual_seed(seed))


def logits(llm, tokens, positions=None, segments=None, cache=None, **more):
    if positions is None:
        positions = torch.arange(tokens.shape[1])[None].expand(len(tokens), -1)
    with torch.no_grad():
        return llm.head(llm.forward(llm.embed(tokens), positions, segments, cache, **more))


def packed(*lengths, pad=0):
    segments = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)] + [torch.zeros(pad)])
    positions = torch.cat([torch.arange(n) for n in (*lengths, pad)])
    return positions[None], segments[None].to(torch.int32)


def test_equals_transformers(llm, tmp_path):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(llm.folder, attn_implementation="eager").eval()
    tokens = ids(11)
    with torch.no_grad():
        torch.testing.assert_close(logits(llm, tokens), reference(input_ids=tokens).logits, atol=CLOSE, rtol=1e-5)


def test_packed_equals_alone(llm):
    a, b = ids(7), ids(5, seed=1)
    positions, segments = packed(7, 5, pad=3)
    together = logits(llm, torch.cat([a, b, ids(3, seed=2)], 1), positions, segments)
    torch.testing.assert_close(together[:, :7], logits(llm, a), atol=CLOSE, rtol=1e-5)
    torch.testing.assert_close(together[:, 7:12], logits(llm, b), atol=CLOSE, rtol=1e-5)
    assert together.isfinite().all()


def test_without_the_mask_packing_would_be_wrong(llm):
    a, b = ids(7), ids(5, seed=1)
    positions, _ = packed(7, 5)
    leaking = logits(llm, torch.cat([a, b], 1), positions, None)
    assert (leaking[:, 7:] - logits(llm, b)).abs().max() > 1e-2


def test_positions_count(llm):
    tokens = ids(6)
    assert (logits(llm, tokens, torch.arange(6)[None] * 3) - logits(llm, tokens)).abs().max() > 1e-3
    shifted = logits(llm, tokens, torch.arange(6)[None] + 9)
    torch.testing.assert_close(shifted, logits(llm, tokens), atol=2e-5, rtol=1e-4)  # rotary positions are relative


@pytest.mark.parametrize("cuts", [[10], [4, 6], [1] * 10, [7, 1, 1, 1]])
def test_cached_equals_full(llm, cuts):
    tokens, cache, start, parts = ids(10), llm.new_cache(), 0, []
    for n in cuts:
        parts.append(logits(llm, tokens[:, start : start + n], torch.arange(start, start + n)[None], None, cache))
        start += n
    torch.testing.assert_close(torch.cat(parts, 1), logits(llm, tokens), atol=CLOSE, rtol=1e-5)


def test_cached_rows_of_unequal_length(llm):
    """Padding at the end of a prompt stays unseen by what is decoded behind it."""
    short, long, more = ids(4), ids(9, seed=1), ids(3, seed=2)
    tokens = torch.cat([torch.cat([short, torch.zeros(1, 5, dtype=torch.int64)], 1), long])
    segments = torch.tensor([[1] * 4 + [0] * 5, [1] * 9], dtype=torch.int32)
    cache = llm.new_cache()
    logits(llm, tokens, segments=segments, cache=cache)
    lengths = torch.tensor([4, 9])
    for step in range(2):
        next_token = more[:, step].expand(2)[:, None]
        out = logits(llm, next_token, (lengths + step)[:, None], None, cache)
    alone = logits(llm, torch.cat([short, more[:, :2]], 1))
    torch.testing.assert_close(out[:1, -1], alone[:, -1], atol=CLOSE, rtol=1e-5)
    cache.keep(torch.tensor([1]))
    out = logits(llm, more[:, 2:], torch.tensor([[11]]), None, cache)
    torch.testing.assert_close(out[:, -1], logits(llm, torch.cat([long, more], 1))[:, -1], atol=CLOSE, rtol=1e-5)


def test_written_out_equals_fused(llm, tmp_path):
    plain = tiny.llm(tmp_path, llm.model.config.model_type, "math", **CHANGES.get(llm.model.config.model_type, {}))
    tokens, (positions, segments) = ids(12), packed(7, 5)
    for args in ((None, None), (positions, segments)):
        torch.testing.assert_close(logits(plain, tokens, *args), logits(llm, tokens, *args), atol=CLOSE, rtol=1e-5)


def extra(prompts, gate, mask=None):
    mask = torch.ones(prompts.shape[:3], dtype=torch.bool) if mask is None else mask
    return lambda module, query, call: prompt_term(module, query, prompts, mask, call.segments, gate)


@pytest.mark.parametrize("scaling", [0.3, 1.7])
def test_the_term_of_prompts_written_out(scaling):
    """Grouped heads, and a scale that is not one over the root of the width, as Gemma has it; both roads."""
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.k_proj, module.v_proj, module.scaling = torch.nn.Linear(16, 6), torch.nn.Linear(16, 6), scaling
    query, prompts, gate = torch.randn(2, 4, 5, 3), torch.randn(1, 1, 7, 16), torch.randn(4, 1)
    key, value = (p(prompts[0, 0]).unflatten(-1, (2, 3)).transpose(0, 1) for p in (module.k_proj, module.v_proj))
    key, value = (x[[0, 0, 1, 1]] for x in (key, value))  # of four heads two and two share one
    expected = gate * ((query @ key.transpose(-1, -2) * scaling).softmax(-1) @ value).transpose(1, 2)
    for mask in (None, torch.ones(2, 1, 7, dtype=torch.bool)):
        given = prompts if mask is None else prompts.expand(2, -1, -1, -1)
        torch.testing.assert_close(prompt_term(module, query, given, mask, None, gate), expected)


def test_zero_gate_equals_plain_to_the_bit(llm):
    prompts = torch.randn(1, 1, 3, llm.width)
    out = logits(llm, ids(6), attention_terms={0: [extra(prompts, torch.zeros(1))]})
    assert torch.equal(out, logits(llm, ids(6)))


def test_packed_samples_with_their_own_prompts_equal_alone(llm):
    torch.manual_seed(0)
    prompts, gate = torch.randn(1, 2, 3, llm.width), torch.tensor([0.5, -0.3, 0.8, 0.1])[:, None]
    a, b = ids(7), ids(5, seed=1)
    positions, segments = packed(7, 5, pad=2)
    padded = torch.cat([a, b, ids(2)], 1)
    together = logits(llm, padded, positions, segments, attention_terms={1: [extra(prompts, gate)]})
    for n, (tokens, part) in enumerate(((a, together[:, :7]), (b, together[:, 7:12]))):
        alone = logits(llm, tokens, attention_terms={1: [extra(prompts[:, n : n + 1], gate)]})
        torch.testing.assert_close(part, alone, atol=CLOSE, rtol=1e-5)
        assert (alone - logits(llm, tokens)).abs().max() > 1e-3


def test_a_segment_without_prompts_is_plain_and_gradients_are_finite(llm):
    prompts = torch.randn(1, 2, 3, llm.width, requires_grad=True)
    gate = torch.full((1,), 0.5, requires_grad=True)
    mask = torch.tensor([[[True, True, False], [False] * 3]])
    positions, segments = packed(7, 5)
    tokens = torch.cat([ids(7), ids(5, seed=1)], 1)
    llm.requires_grad_(False)
    hidden = llm.forward(llm.embed(tokens), positions, segments, attention_terms={0: [extra(prompts, gate, mask)]})
    hidden.sum().backward()
    torch.testing.assert_close(llm.head(hidden[:, 7:]), logits(llm, ids(5, seed=1)), atol=CLOSE, rtol=1e-5)
    assert prompts.grad.isfinite().all() and gate.grad.isfinite().all() and gate.grad.abs() > 0
    assert prompts.grad[0, 0, :2].abs().min() > 0 and not prompts.grad[0, 0, 2].any() and not prompts.grad[0, 1].any()


def test_nothing_outlives_the_call(llm):
    logits(llm, ids(4), attention_terms={0: [extra(torch.randn(1, 1, 2, llm.width), torch.ones(1))]})
    kept = [v for m in llm.modules() for v in vars(m).values() if isinstance(v, Call)]
    assert not kept
    assert torch.equal(logits(llm, ids(4)), logits(llm, ids(4)))


def test_model_run_around_us_is_refused(llm):
    with pytest.raises(ModelError, match="without the segments"):
        llm.model(input_ids=ids(3))


def test_extras_of_a_tuner_run_in_every_call(llm):
    class Term(torch.nn.Module):
        def forward(self, module, query, call):
            return torch.ones_like(query.transpose(1, 2))

    before = logits(llm, ids(4))
    llm.attention_terms["0"] = Term()
    try:
        assert (logits(llm, ids(4)) - before).abs().max() > 1e-3
    finally:
        del llm.attention_terms["0"]
