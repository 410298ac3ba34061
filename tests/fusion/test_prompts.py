"""Media as gated prompts, early and added, on every family of decoders: alone, packed, cached, trained."""

import pytest
import torch

from mmtune.errors import ConfigError, ModelError
from mmtune.fusion._prompts import gather
from mmtune.fusion.added_prompts import AddedPrompts
from mmtune.fusion.added_prompts import Config as AddedConfig
from mmtune.fusion.early_prompts import Config as EarlyConfig
from mmtune.fusion.early_prompts import EarlyPrompts
from mmtune.tuners.prompts import Config as PromptsConfig
from mmtune.tuners.prompts import Prompts
from mmtune.types import Batch, Embeds
from tests.llm import tiny

KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3"]
CHANGES = {"mistral": {"sliding_window": 4}, "gemma3": {"sliding_window": 4}}
PLACES = 3
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", params=KINDS)
def llm(request, tmp_path_factory):
    return tiny.llm(tmp_path_factory.mktemp(request.param), request.param, **CHANGES.get(request.param, {}))


@pytest.fixture(params=["early", "added"])
def fusion(request, llm):
    return made(llm, request.param)


def made(llm, kind, gate=0.7, **more):
    torch.manual_seed(0)
    if kind == "early":
        fusion = EarlyPrompts(EarlyConfig(**more), llm.width, llm.depth, llm.heads)
    else:
        fusion = AddedPrompts(AddedConfig(**{"length": PLACES, **more}), llm.width, llm.depth, llm.heads)
    with torch.no_grad():
        for one in fusion.prompts.gates.values():
            one.weight.copy_(gate * torch.linspace(-1, 1.5, llm.heads)[:, None])
    return fusion


def ids(length, seed=0):
    return torch.randint(20, 340, (1, length), generator=torch.Generator().manual_seed(seed))


def items(llm, number, seed=5):
    tokens = torch.randn(number, PLACES, llm.width, generator=torch.Generator().manual_seed(seed))
    return Embeds(tokens, torch.ones(number, PLACES, dtype=torch.bool))


def batch(tokens, owners=(), segments=None, positions=None):
    """`owners` are (row, segment) of the items."""
    segments = torch.ones_like(tokens, dtype=torch.int32) if segments is None else segments
    positions = torch.arange(tokens.shape[1]).expand_as(tokens) if positions is None else positions
    media = {}
    if owners:
        slots = torch.tensor([[row, segment, 0, 0] for row, segment in owners])
        frames = torch.ones(len(owners), 1, dtype=torch.bool)
        media = {
            "media": {"sight": torch.zeros(len(owners), 1)},
            "frame_mask": {"sight": frames},
            "slots": {"sight": slots},
        }
    return Batch(tokens, torch.full_like(tokens, -100), positions, segments, **media)


def packed(*lengths, pad=0):
    segments = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)] + [torch.zeros(pad)])
    positions = torch.cat([torch.arange(n) for n in (*lengths, pad)])
    return {"segments": segments[None].to(torch.int32), "positions": positions[None]}


def run(fusion, llm, given, embeds=None, cache=None):
    with torch.no_grad():
        return llm.head(fusion(llm, given, {} if embeds is None else {"sight": embeds}, cache))


def plain(llm, tokens):
    with torch.no_grad():
        return llm.head(llm.forward(llm.embed(tokens), torch.arange(tokens.shape[1])[None], None))


def test_media_matter_and_zero_gates_equal_the_plain_model_to_the_bit(llm, fusion):
    tokens = ids(7)
    assert (run(fusion, llm, batch(tokens, [(0, 1)]), items(llm, 1)) - plain(llm, tokens)).abs().max() > 1e-3
    for gate in fusion.prompts.gates.values():
        torch.nn.init.zeros_(gate.weight)
    assert torch.equal(run(fusion, llm, batch(tokens, [(0, 1)]), items(llm, 1)), plain(llm, tokens))


def test_without_media_it_is_the_plain_model(llm, fusion):
    assert torch.equal(run(fusion, llm, batch(ids(7))), plain(llm, ids(7)))


def test_packed_equals_alone_with_media_in_some_segments(llm, fusion):
    parts, given = [ids(7), ids(5, 1), ids(6, 2)], items(llm, 3)
    row = torch.cat([*parts, ids(3, 3)], 1)
    owners = [(0, 3), (0, 1), (0, 3)]  # two items of the last segment, none of the second
    together = run(fusion, llm, batch(row, owners, **packed(7, 5, 6, pad=3)), given)
    assert together.isfinite().all()
    for part, segment, mine in zip(parts, (1, 2, 3), ([1], [], [0, 2]), strict=True):
        start = sum(p.shape[1] for p in parts[: segment - 1])
        embeds = Embeds(given.tokens[mine], given.mask[mine]) if mine else None
        alone = run(fusion, llm, batch(part, [(0, 1)] * len(mine)), embeds)
        torch.testing.assert_close(together[:, start : start + part.shape[1]], alone, **CLOSE)


def test_media_of_the_first_segment_alone_are_not_for_those_behind_it(llm, fusion):
    """One row, one owner: the shape that learned prompts of all tokens have."""
    parts, given = [ids(7), ids(5, 1)], items(llm, 1)
    together = run(fusion, llm, batch(torch.cat(parts, 1), [(0, 1)], **packed(7, 5)), given)
    torch.testing.assert_close(together[:, :7], run(fusion, llm, batch(parts[0], [(0, 1)]), given), **CLOSE)
    torch.testing.assert_close(together[:, 7:], run(fusion, llm, batch(parts[1])), **CLOSE)


def test_rows_without_media_beside_rows_with_media(llm, fusion):
    tokens, given = torch.cat([ids(6), ids(6, 1), ids(6, 2)]), items(llm, 2)
    together = run(fusion, llm, batch(tokens, [(2, 1), (0, 1)]), given)
    torch.testing.assert_close(together[1:2], plain(llm, tokens[1:2]), **CLOSE)
    for row, item in ((0, 1), (2, 0)):
        embeds = Embeds(given.tokens[item : item + 1], given.mask[item : item + 1])
        torch.testing.assert_close(
            together[row : row + 1], run(fusion, llm, batch(tokens[row : row + 1], [(0, 1)]), embeds), **CLOSE
        )


def test_items_of_a_segment_stand_one_after_another():
    """By branch name, then in the order of the batch; what is no real place of an item is none of the prompts."""
    sight = Embeds(torch.arange(1, 5).float().reshape(2, 2, 1), torch.tensor([[True, True], [True, False]]))
    sound = Embeds(torch.tensor([[[9.0]]]), torch.ones(1, 1, dtype=torch.bool))
    given = batch(ids(4), [(0, 2), (0, 2)], **packed(2, 2))
    given.slots["sound"] = torch.tensor([[0, 2, 0, 0]])
    found = gather(given, {"sound": sound, "sight": sight})
    assert found.tokens.squeeze(-1).tolist() == [[[0, 0, 0, 0, 0], [1, 2, 3, 4, 9]]]
    assert found.mask.tolist() == [[[False] * 5, [True, True, True, False, True]]]


def test_each_layer_has_rows_of_its_own_the_lowest_first(llm):
    prompts = made(llm, "added", layers=2).prompts
    assert prompts.layers == (0, 1) and made(llm, "added", layers=1).prompts.layers == (1,)
    for layer in (0, 1):
        assert torch.equal(prompts.prompts(layer), prompts.weight[layer * PLACES : (layer + 1) * PLACES])


@pytest.mark.parametrize("cuts", [[4, 6], [1] * 10])
def test_cached_equals_full(llm, fusion, cuts):
    tokens, given, cache, start, parts = ids(10), items(llm, 1), llm.new_cache(), 0, []
    for n in cuts:
        some = tokens[:, start : start + n]
        parts.append(
            run(fusion, llm, batch(some, [(0, 1)], positions=torch.arange(start, start + n)[None]), given, cache)
        )
        start += n
    torch.testing.assert_close(torch.cat(parts, 1), run(fusion, llm, batch(tokens, [(0, 1)]), given), **CLOSE)


def test_gradients_reach_prompts_gates_and_media_only(llm, fusion):
    llm.requires_grad_(False)
    given = items(llm, 2)
    given.tokens.requires_grad_()
    row = torch.cat([ids(7), ids(5, 1), ids(3, 2)], 1)
    fusion(llm, batch(row, [(0, 1), (0, 2)], **packed(7, 5, pad=3)), {"sight": given}).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in fusion.parameters())
    assert given.tokens.grad.isfinite().all() and given.tokens.grad.abs().amax(-1).min() > 0
    assert all(p.grad is None for p in llm.parameters())


def test_a_batch_without_media_gives_zero_gradients(llm, fusion):
    fusion(llm, batch(ids(5)), {}).square().sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in fusion.parameters())


def test_added_prompts_alone_where_media_are_absent(llm):
    fusion = made(llm, "added", absent="prompts")
    nothing = Embeds(torch.zeros(1, PLACES, llm.width), torch.ones(1, PLACES, dtype=torch.bool))
    expected = run(fusion, llm, batch(ids(6), [(0, 1)]), nothing)
    assert (expected - plain(llm, ids(6))).abs().max() > 1e-3
    torch.testing.assert_close(run(fusion, llm, batch(ids(6))), expected, **CLOSE)
    given, row = items(llm, 1), torch.cat([ids(7, 1), ids(6)], 1)
    mixed = run(fusion, llm, batch(row, [(0, 1)], **packed(7, 6)), given)
    torch.testing.assert_close(mixed[:, 7:], expected, **CLOSE)
    torch.testing.assert_close(mixed[:, :7], run(fusion, llm, batch(ids(7, 1), [(0, 1)]), given), **CLOSE)


def test_added_equals_the_formula_written_out(tmp_path):
    """One layer of a Llama with ordinary heads, by hand: softmax of its own, unrotated and without the layer's norm."""
    llm = tiny.llm(tmp_path, num_hidden_layers=1, num_key_value_heads=4)
    fusion, given, tokens = made(llm, "added", layers=1), items(llm, 1), ids(5)
    site = llm.attention_modules()[0]
    seen = {}
    site.o_proj.register_forward_hook(lambda module, args, out: seen.__setitem__("out", args[0].detach()))
    run(fusion, llm, batch(tokens, [(0, 1)]), given)
    with_media = seen["out"]
    plain(llm, tokens)
    prompts = given.tokens[0] + fusion.prompts.weight
    layer, heads = llm.model.model.layers[0], llm.heads
    x = layer.input_layernorm(llm.embed(tokens))
    cos, sin = llm.model.model.rotary_emb(x, torch.arange(5)[None])
    query = site.q_proj(x).unflatten(-1, (heads, -1)).transpose(1, 2)
    half = query.shape[-1] // 2
    query = query * cos[:, None] + torch.cat([-query[..., half:], query[..., :half]], -1) * sin[:, None]
    key, value = (p(prompts).unflatten(-1, (heads, -1)).transpose(0, 1) for p in (site.k_proj, site.v_proj))
    chances = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    term = chances @ value * fusion.prompts.gates["0"].weight.tanh()[:, :, None]
    torch.testing.assert_close(with_media - seen["out"], term.transpose(1, 2).flatten(2), **CLOSE)


def test_raw_gates_and_the_extra_number(llm):
    tokens, given = ids(6), items(llm, 1)
    tanh = made(llm, "added")
    raw = AddedPrompts(AddedConfig(length=PLACES, gate="raw"), llm.width, llm.depth, llm.heads)
    raw.load_state_dict(tanh.state_dict())
    for gate in raw.prompts.gates.values():
        gate.weight.data.tanh_()
    expected = run(tanh, llm, batch(tokens, [(0, 1)]), given)
    torch.testing.assert_close(run(raw, llm, batch(tokens, [(0, 1)]), given), expected, **CLOSE)
    more = AddedPrompts(AddedConfig(length=PLACES, extra_gate=True), llm.width, llm.depth, llm.heads)
    more.load_state_dict(tanh.state_dict(), strict=False)
    torch.testing.assert_close(run(more, llm, batch(tokens, [(0, 1)]), given), expected, **CLOSE)
    for gate in more.prompts.gates.values():
        gate.extra.data.zero_()
    assert torch.equal(run(more, llm, batch(tokens, [(0, 1)]), given), plain(llm, tokens))


def test_spare_gates_do_nothing_and_get_a_zero_gradient(llm):
    fusion = made(llm, "added", spare_gates=True)
    assert sorted(fusion.prompts.gates) == ["0", "1"] and fusion.prompts.layers == (1,)
    fusion(llm, batch(ids(5), [(0, 1)]), {"sight": items(llm, 1)}).square().sum().backward()
    assert not fusion.prompts.gates["0"].weight.grad.any() and fusion.prompts.gates["1"].weight.grad.any()


def test_low_rank_pairs_are_for_the_text(tmp_path):
    """Prompt keys and values go through the matrices alone, as published."""
    from mmtune.tuners.hf_peft import Config, HfPeft

    llm = tiny.llm(tmp_path)
    fusion, given = made(llm, "early"), items(llm, 1)
    seen = []
    names = HfPeft(Config(method="lora", r=2, target_modules=["k_proj", "v_proj"])).apply(llm)
    for name, parameter in llm.named_parameters():
        if name in names:
            torch.nn.init.normal_(parameter)
    for matrix in (llm.attention_modules()[0].k_proj, llm.attention_modules()[0].v_proj):
        matrix.lora_A["default"].register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    run(fusion, llm, batch(ids(7), [(0, 1)]), given)
    assert seen == [7, 7]


def test_a_norm_of_the_keys_is_the_prompts_too(llm, fusion):
    """Qwen3 and Gemma 3 norm their queries and keys; keys of another scale would not fit such queries."""
    site, seen = llm.attention_modules()[fusion.prompts.layers[0]], []
    assert hasattr(site, "k_norm") == (llm.model.config.model_type in ("qwen3", "gemma3_text"))
    if not hasattr(site, "k_norm"):
        return
    hook = site.k_norm.register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    run(fusion, llm, batch(ids(7), [(0, 1)]), items(llm, 1))
    hook.remove()
    number = llm.model.config.num_key_value_heads * site.head_dim
    assert sorted(seen) == [PLACES * number, 7 * number]


def test_early_media_and_late_prompts_do_not_meet(llm, tmp_path):
    tuned = tiny.llm(tmp_path, llm.model.config.model_type.removesuffix("_text"))
    Prompts(PromptsConfig(length=2)).apply(tuned)
    made(tuned, "early", layers=1).check(tuned)
    with pytest.raises(ModelError, match="layers 1 of 2"):
        made(tuned, "early", layers=2).check(tuned)
    with pytest.raises(ModelError, match="both in layers 1"):
        made(tuned, "added").check(tuned)


@pytest.mark.parametrize("kind", ["early", "added"])
def test_what_does_not_fit_is_refused(llm, kind):
    with pytest.raises(ConfigError, match="in 3 layers of a model that has 2"):
        made(llm, kind, layers=3)
    with pytest.raises(ModelError, match="one slot for each item"):
        run(made(llm, kind), llm, batch(ids(5), [(0, 1)]), items(llm, 2))
    if kind == "added":
        with pytest.raises(ModelError, match=r"items of 3 to 3 tokens\nexpected: 2 of each"):
            run(made(llm, kind, length=2), llm, batch(ids(5), [(0, 1)]), items(llm, 1))
        made(llm, kind).check(llm, {"sight": PLACES})
        with pytest.raises(ModelError, match=r"branch sight: items of 4 tokens\nexpected: 3 of each"):
            made(llm, kind).check(llm, {"sight": 4})


@pytest.mark.parametrize("kind", ["early", "added"])
def test_a_base_in_half_precision(tmp_path, kind):
    """What trains stays in float32, over weights in bfloat16."""
    from mmtune.llm.hf import HF, Config

    llm = HF(Config(folder=str(tiny.folder(tmp_path)), dtype="bfloat16"))
    llm.load_weights()
    llm.requires_grad_(False)
    fusion, given = made(llm, kind), items(llm, 1)
    hidden = fusion(llm, batch(ids(5), [(0, 1)]), {"sight": given})
    hidden.float().square().sum().backward()
    assert hidden.dtype == torch.bfloat16
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.any() for p in fusion.parameters())
