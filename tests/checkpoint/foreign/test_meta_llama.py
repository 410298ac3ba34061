"""LLaMA in Meta's layout against the model's formula written out here, the joining of shards, and its tokenizer."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer

from mmtune.checkpoint import convert, store
from mmtune.checkpoint.foreign import _llama, _meta_llama, _sentencepiece
from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.keymap import KeyMap
from mmtune.errors import CheckpointError
from tests.checkpoint.foreign import meta
from tests.checkpoint.foreign.makers import imagebind_llm as imagebind
from tests.checkpoint.foreign.makers import llama_adapter_65b as chat

EPS = 1e-6


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def rotate(x):
    """Neighbouring channels are pairs.  [B,T,H,d]"""
    d = x.shape[-1]
    angles = torch.outer(torch.arange(x.shape[1]), 10000.0 ** (-torch.arange(0, d, 2) / d))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def reference(w, tokens):
    """Logits of a LLaMA by Meta's names; `_scale`, `_bias`, gates and prompts count where they are."""

    def linear(x, i, name):
        key = f"layers.{i}.{name}"
        return (x * w.get(f"{key}_scale", 1)) @ w[f"{key}.weight"].T + w.get(f"{key}_bias", 0)

    gates = sorted(name for name in w if name.endswith("gate"))
    h, t = w["tok_embeddings.weight"][tokens], tokens.shape[1]
    for i in range(meta.LAYERS):
        x = norm(h, w[f"layers.{i}.attention_norm.weight"])
        q, k, v = (linear(x, i, f"attention.w{n}").unflatten(-1, (meta.HEADS, -1)) for n in "qkv")
        q, k = rotate(q), rotate(k)
        scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), float("-inf"))
        out = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        if f"layers.{i}.attention.gate" in w:
            place = gates.index(f"layers.{i}.attention.gate")
            prompts = w["adapter_query.weight"].unflatten(0, (len(gates), -1))[place]
            pk, pv = (linear(prompts, i, f"attention.w{n}").unflatten(-1, (meta.HEADS, -1)) for n in "kv")
            share = (torch.einsum("bthd,shd->bhts", q, pk) / q.shape[-1] ** 0.5).softmax(-1)
            gate = w[f"layers.{i}.attention.gate"].tanh()
            out = out + torch.einsum("bhts,shd->bthd", gate * share, pv)
        h = h + linear(out.flatten(-2), i, "attention.wo")
        x = norm(h, w[f"layers.{i}.ffn_norm.weight"])
        up = torch.nn.functional.silu(linear(x, i, "feed_forward.w1")) * linear(x, i, "feed_forward.w3")
        h = h + linear(up, i, "feed_forward.w2")
    return norm(h, w["norm.weight"]) @ w["output.weight"].T


def test_import_over_two_ranks_gives_the_formulas_numbers(tmp_path):
    """Shards, row order, epsilon, tokenizer, scale, bias, norms, prompts and gates at once."""
    torch.manual_seed(0)
    folder = meta.folder(tmp_path / "LLaMA" / "65B")
    torch.manual_seed(0)
    whole = meta.weights()
    adapter = chat.tensors()
    torch.save({"model": adapter}, tmp_path / "chat.pth")
    run = convert.import_checkpoint("llama_adapter_65b", [str(folder), str(tmp_path / "chat.pth")], tmp_path / "run")
    llm = store.load_run(run)[0].llm
    tokens = torch.randint(0, meta.vocabulary(), (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = llm.head(llm.forward(llm.embed(tokens), torch.arange(7).expand(2, -1), None))
    torch.testing.assert_close(got, reference({**whole, **adapter}, tokens), rtol=1e-4, atol=1e-4)
    assert llm.tokenizer.bos == 1 and llm.tokenizer.eos == 2
    assert llm.tokenizer.decode(llm.tokenizer.encode("a red b")) == "a red b"


def test_the_table_goes_both_ways():
    whole = meta.weights()
    table = KeyMap(_llama.backbone(meta.HEADS, meta.HEADS))
    ours = table.into(whole)
    assert all(name.startswith("llm.model.") for name in ours)
    assert not torch.equal(
        ours["llm.model.model.layers.0.self_attn.q_proj.weight"], whole["layers.0.attention.wq.weight"]
    )
    back = table.out(ours)
    assert back.keys() == whole.keys() and all(torch.equal(back[name], whole[name]) for name in whole)


def test_the_order_of_rows():
    rows = torch.arange(8)
    assert _llama.to_halves(2)(rows).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert _llama.to_pairs(2)(_llama.to_halves(2)(rows)).tolist() == rows.tolist()
    assert _llama.to_halves(1)(rows).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_shards():
    whole = {**meta.weights(), **chat.tensors(prompts=False)}
    pieces = {name: cut(name, tensor, 2) for name, tensor in whole.items()}
    shards = [{name: pieces[name][rank] for name in whole} for rank in (0, 1)]
    merged = _llama.merge(shards, meta.DIM)
    assert merged.keys() == whole.keys() and all(torch.equal(merged[name], whole[name]) for name in whole)
    late = [{"tok_embeddings.weight": piece} for piece in whole["tok_embeddings.weight"].tensor_split(2)]
    assert torch.equal(_llama.merge(late, meta.DIM)["tok_embeddings.weight"], whole["tok_embeddings.weight"])
    with pytest.raises(CheckpointError, match=r"no consolidated"):
        _llama.merge([], meta.DIM)
    del shards[1]["norm.weight"]
    shards[1]["layers.0.ffn_norm.weight"] = torch.zeros(meta.DIM)
    with pytest.raises(CheckpointError, match=r"norm.weight: not in every file"):
        _llama.merge(shards, meta.DIM)
    del shards[0]["norm.weight"]
    with pytest.raises(CheckpointError, match=r"layers.0.ffn_norm.weight: .* differ"):
        _llama.merge(shards, meta.DIM)


def cut(name, tensor, ranks):
    """As the published code cuts what it adds: biases where the outputs are cut, scales where the inputs are."""
    if not name.endswith(("_bias", "_scale")):
        return meta.cut(name, tensor, ranks)
    rows = name.removesuffix("_bias").removesuffix("_scale")[-2:] in ("wq", "wk", "wv", "w1", "w3")
    return list(tensor.chunk(ranks)) if rows == name.endswith("_bias") else [tensor] * ranks


def test_sizes():
    assert _llama.hidden_width(4096, 256) == 11008
    assert _llama.hidden_width(8192, 256) == 22016
    params = {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
    }
    shape = _llama.Shape.read(params, vocab=32000)
    assert (shape.hidden, shape.kv_heads, shape.vocab, shape.eps) == (28672, 8, 32000, 1e-5)
    with pytest.raises(CheckpointError, match="n_layers"):
        _llama.Shape.read({"dim": 8, "n_heads": 2, "multiple_of": 4})
    with pytest.raises(CheckpointError, match="use_scaled_rope"):
        _llama.Shape.read({**params, "use_scaled_rope": True}, vocab=32000)


def test_a_folder_without_weights_or_tokenizer_is_refused(tmp_path):
    folder = meta.folder(tmp_path / "a" / "7B", ranks=1)
    (folder / "consolidated.00.pth").rename(folder / "elsewhere.pth")
    with pytest.raises(CheckpointError, match=r"no consolidated"):
        _meta_llama.locate(Source("llm", folder, tmp_path))
    (folder.parent / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.model"):
        _meta_llama._tokenizer(Source("llm", folder, tmp_path))


def test_a_base_of_another_architecture_is_refused():
    other = Source.memory("llm", {}, {"config.json": {"model_type": "qwen2", "num_attention_heads": 4}})
    with pytest.raises(CheckpointError, match="qwen2"):
        _meta_llama.heads(other)
    grouped = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    assert _meta_llama.heads(Source.memory("llm", {}, {"config.json": grouped})) == (4, 2)
    assert _meta_llama.heads(Source.memory("llm", {}, {"params.json": {"n_heads": 8}})) == (8, 8)


# ---------------------------------------------------------------------------------------------------- tokenizer.model


def test_a_sentencepiece_file_becomes_a_tokenizer():
    tree = _sentencepiece.to_json(meta.sentencepiece())
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    first = 3 + 256
    piece = {word: first + place for place, word in enumerate(meta.WORDS)}
    ids = tokenizer.encode("a red", add_special_tokens=False).ids
    # the best score wins at each step: "▁a", then "re", "red" of "re" and "d", and "▁red" of "▁" and "red"
    assert ids == [piece["▁a"], piece["▁red"]]
    assert tokenizer.encode("bed", add_special_tokens=False).ids == [piece["▁b"], piece["ed"]]
    assert tokenizer.encode("é", add_special_tokens=False).ids == [piece["▁"], 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(ids) == "a red"
    assert tokenizer.token_to_id("</s>") == 2
    assert _sentencepiece.marks(tree) == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.get_vocab_size() == meta.vocabulary()
    pairs = [merge for merge in tree["model"]["merges"] if "".join(merge) == "red"]
    assert sorted(pairs) == [["r", "ed"], ["re", "d"]]
    assert not [merge for merge in tree["model"]["merges"] if "".join(merge) in ("<s>", "</s>")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not protobuf at all", "a model file of sentencepiece"),
        (meta.sentencepiece()[:-3], "a model file of sentencepiece"),
        (b"", "0 pieces"),
        (meta.sentencepiece(unigram=True), "byte-pair"),
        (meta.sentencepiece(squeeze=True), "squeezes blanks"),
    ],
)
def test_other_files_are_refused(content, said):
    with pytest.raises(CheckpointError, match=said):
        _sentencepiece.to_json(content)


# ------------------------------------------------------------------------------------------- what an adapter asks for


def test_sections_of_the_chat_variant():
    from mmtune.checkpoint.foreign import llama_adapter_65b as importer

    bias_norm, prompts = importer.tuners(chat.tensors())
    assert (bias_norm["form"], bias_norm["norms"]) == ("input", "layers")
    assert (prompts["length"], prompts["layers"]) == (3, 2)
    tensors = {name: t for name, t in chat.tensors(prompts=False).items() if not name.endswith("_scale")}
    (alone,) = importer.tuners({**tensors, "norm.weight": torch.ones(meta.DIM)})
    assert (alone["form"], alone["bias"], alone["norms"]) == ("bias", True, "all")


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_sections_of_imagebind_llm(tuned, low, legacy):
    """Every kind of file fits its own table in both directions."""
    from mmtune.checkpoint.foreign import imagebind_llm as importer

    tensors = imagebind.tensors(tuned, low, legacy)
    tree = importer.sections(tensors, meta.DIM)
    assert tree["connector"] == {"name": "imagebind_bridge", "ratio": 4, "norm": "layer" if legacy else "rms"}
    assert tree["fusion"]["layers"] == meta.LAYERS - 1 and tree["fusion"]["spare_gates"]
    assert [tuner["name"] for tuner in tree["tuners"]] == ["bias_norm"] * tuned + ["hf_peft"] * low
    table = importer.table(meta.HEADS, meta.HEADS, tree)
    back = table.out(table.into(tensors))
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
